"""The grid of an image's tokens on the picture."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class PatchGrid(BaseModel):
    """The grid of an image's tokens: the tower's square input in patches, row by row."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rows: int
    """The number of rows of patches."""
    columns: int
    """The number of patches in a row."""
    tokens: int
    """The number of tokens of an image."""
    first_patch: int
    """The index of the first token's patch: 1 if the first patch is dropped, -1 if a class token comes
    first."""
    fit: Literal["pad", "crop", "stretch"]
    """How a picture becomes a square: padded, cropped to its middle, or stretched."""

    def place(self, token: int) -> tuple[int, int] | None:
        """The row and column of an image's token; None for a class token."""
        patch = token + self.first_patch
        return None if patch < 0 else divmod(patch, self.columns)
