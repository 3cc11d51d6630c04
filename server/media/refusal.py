"""Why an image or a video of a request is not taken."""

DAMAGED = "it is damaged or cut short"


class MediaRefused(Exception):
    """It is not taken; the message is the reason, for the client to read: part of a sentence."""
