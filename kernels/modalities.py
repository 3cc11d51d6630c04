"""The modalities of tokens, in the order of every count by modality. Imports no torch."""

MODALITIES = ("text", "vision")
