"""How the tokens of an image lie on the picture."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class PatchGrid(BaseModel):
    """The square that the image tower sees, cut into patches; an image's tokens are patches, row by row."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rows: int
    """Rows of patches."""
    columns: int
    """Patches in a row."""
    tokens: int
    """How many tokens an image becomes."""
    first_patch: int
    """The patch of an image's first token: 1 where the first patch is lost, -1 where a class token leads."""
    fit: Literal["pad", "crop", "stretch"]
    """How a picture becomes a square: in the middle of a larger one, by its middle alone, or out of shape."""

    def place(self, token: int) -> tuple[int, int] | None:
        """Row and column of an image's token; None for a class token."""
        patch = token + self.first_patch
        return None if patch < 0 else divmod(patch, self.columns)
