"""Which drawings are trained on, and which are kept back to ask about.

Two honest splits: `unseen style`, a family of which no drawing is trained on; and `held-out drawings`, all
drawings of some concepts by one of the trained families. Those come in two lots. The first is a quarter of
the candidates, and the exam of single drawings asks about it alone. With the second there are 135 held-out
drawings of known concepts instead of 37. `validation` is what a run is chosen on: drawings by the two
families that the other splits leave alone, of concepts without held-out drawings.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prismoe.training.data.concepts import CANDIDATE_BY_EMOJI, CANDIDATES, CONCEPTS
from prismoe.training.data.pictures import UNSEEN_FAMILY, Drawing

HELD_OUT_SHARE = 0.25
MORE_HELD_OUT, VALIDATION = 55, 40  # concepts
HELD_OUT_FAMILIES = ("noto", "fluent", "emojione")
VALIDATION_FAMILIES = ("fxemoji", "streamline")


@dataclass(frozen=True)
class Splits:
    """Indices into the list of drawings."""

    train: list[int] = field(default_factory=list)
    held_out: list[int] = field(default_factory=list)
    more_held_out: list[int] = field(default_factory=list)
    validation: list[int] = field(default_factory=list)
    unseen_style: list[int] = field(default_factory=list)


def held_out_families(seed: int = 0) -> dict[str, str]:
    """Candidate → the family whose drawings of it are left out of training, for a quarter of the
    candidates.
    """
    draw = random.Random(seed)
    chosen = draw.sample([concept.name for concept in CANDIDATES], round(HELD_OUT_SHARE * len(CANDIDATES)))
    return {name: draw.choice(HELD_OUT_FAMILIES) for name in chosen}


def more_families() -> tuple[dict[str, str], dict[str, str]]:
    """The same for the second lot and for validation. No concept is in two of the three."""
    draw = random.Random(1)
    left = [concept.name for concept in CONCEPTS if concept.name not in held_out_families()]
    chosen = draw.sample(left, MORE_HELD_OUT + VALIDATION)
    held_out, validation = chosen[:MORE_HELD_OUT], chosen[MORE_HELD_OUT:]
    return _families(draw, held_out, HELD_OUT_FAMILIES), _families(draw, validation, VALIDATION_FAMILIES)


def _families(draw: random.Random, names: Sequence[str], families: Sequence[str]) -> dict[str, str]:
    return {name: draw.choice(families) for name in names}


def split(drawings: Sequence[Drawing]) -> Splits:
    """Sort the drawings into the sets. A drawing of no candidate can only be trained on."""
    more_held_out, validation = more_families()
    sets = Splits()
    kept_back: list[tuple[Mapping[str, str], list[int]]] = [
        (held_out_families(), sets.held_out),
        (more_held_out, sets.more_held_out),
        (validation, sets.validation),
    ]
    for index, drawing in enumerate(drawings):
        candidate = CANDIDATE_BY_EMOJI.get(drawing.emoji)
        if drawing.family == UNSEEN_FAMILY:
            if candidate:
                sets.unseen_style.append(index)
            continue
        name = candidate.name if candidate else ""
        own = [kept for families, kept in kept_back if families.get(name) == drawing.family]
        (own[0] if own else sets.train).append(index)
    return sets
