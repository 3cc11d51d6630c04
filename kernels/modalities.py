"""The modalities of tokens, in the order of every count by modality. Imports no torch."""

MODALITIES = ("text", "image", "video", "audio")
VISION = ("image", "video")
"""What "vision" means: images and videos together."""
