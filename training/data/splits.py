"""Which drawings are trained on, and which are kept to ask about.

Two honest splits: `unseen style`, a family no drawing of which was trained on; and `held-out drawings`, for
about a quarter of the concepts all drawings by one of the trained families.
"""

import random
from dataclasses import dataclass

from prismoe.training.data.concepts import CANDIDATE_BY_EMOJI, CANDIDATES
from prismoe.training.data.pictures import UNSEEN_FAMILY, Drawing

HELD_OUT_SHARE = 0.25


@dataclass(frozen=True)
class Splits:
    """Indices into the list of drawings."""

    train: list[int]
    held_out: list[int]
    unseen_style: list[int]


def held_out_families(seed: int = 0) -> dict[str, str]:
    """Candidate → the family whose drawings of it are left out of training, for a quarter of the
    candidates.
    """
    draw = random.Random(seed)
    chosen = draw.sample([concept.name for concept in CANDIDATES], round(HELD_OUT_SHARE * len(CANDIDATES)))
    return {name: draw.choice(["noto", "fluent", "emojione"]) for name in chosen}


def split(drawings: list[Drawing]) -> Splits:
    """Sort the drawings into the three sets; a drawing of no known concept can only be trained on."""
    left_out = held_out_families()
    sets = Splits([], [], [])
    for index, drawing in enumerate(drawings):
        concept = CANDIDATE_BY_EMOJI.get(drawing.emoji)
        if drawing.family == UNSEEN_FAMILY:
            if concept:
                sets.unseen_style.append(index)
        elif concept and left_out.get(concept.name) == drawing.family:
            sets.held_out.append(index)
        else:
            sets.train.append(index)
    return sets
