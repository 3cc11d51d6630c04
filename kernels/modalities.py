"""The modalities of tokens, in the order that every list by modality has. Imports no torch.

A model has some of them, and always text.
"""

MODALITIES = ("text", "image", "video", "audio")
VISION = ("image", "video")
