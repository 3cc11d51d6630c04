"""Why an image of a request is not taken."""


class ImageRefused(Exception):
    """The image is not taken; the message is the reason, for the client to read: part of a sentence."""
