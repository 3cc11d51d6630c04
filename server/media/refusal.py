"""The error for an image or a video that is refused."""

DAMAGED = "it is damaged or cut short"


class MediaRefused(Exception):
    """An image or a video is refused. The message is the reason: the last part of a sentence."""
