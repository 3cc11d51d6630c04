"""The modalities of tokens, in the order of every list by modality. Imports no torch.

A model has some of them, text always.
"""

MODALITIES = ("text", "image", "video", "audio")
VISION = ("image", "video")
