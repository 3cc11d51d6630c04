"""The rule behind `SET_ASIDE`, which things teams draw alike: `python -m prismoe.training.data.agreement`.

Each family of training drawings is left out in turn, and its drawings are named from the teacher's features
by ridge regression fitted to the other families. Drawings that are kept back are not used.

Shape legend: N views of drawings, F features, C candidates.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from prismoe.training.data.augment import Augment, on_white
from prismoe.training.data.concepts import CANDIDATE_BY_EMOJI, CANDIDATES
from prismoe.training.data.pictures import Pictures, fetched_pictures
from prismoe.training.data.splits import split
from prismoe.training.teacher import SIDE, Teacher

VIEWS = 3  # of each drawing: the plain one, and variants
RIDGE = 600.0
ENOUGH = 2 / 3


def agreement(pictures: Pictures) -> dict[str, float]:
    """Candidate → how often its left-out drawings are named right."""
    drawings, pixels = pictures.load()
    shown = [i for i in split(drawings).train if drawings[i].emoji in CANDIDATE_BY_EMOJI]
    number = {candidate.name: position for position, candidate in enumerate(CANDIDATES)}
    label_N = torch.tensor([number[CANDIDATE_BY_EMOJI[drawings[i].emoji].name] for i in shown])
    family = [drawings[i].family for i in shown]
    rgba_NHWC = torch.from_numpy(pixels[shown])
    augment, teacher = Augment(5), Teacher()
    plain_NF, *variants = (
        _features(teacher, on_white if view == 0 else augment, rgba_NHWC) for view in range(VIEWS)
    )
    mean_F, std_F = _moments(torch.cat([plain_NF, *variants]))
    views = [(view_NF - mean_F) / std_F for view_NF in (plain_NF, *variants)]
    right_N = torch.zeros(len(shown))
    for left_out in sorted(set(family)):
        is_out_N = torch.tensor([name == left_out for name in family])
        seen_NF = torch.cat([view_NF[~is_out_N] for view_NF in views])
        weight_FC = _ridge(seen_NF, label_N[~is_out_N].repeat(VIEWS))
        guess_N = (_with_one(views[0][is_out_N]) @ weight_FC).argmax(1)
        right_N[is_out_N] = (guess_N == label_N[is_out_N]).float()
    return {name: right_N[label_N == position].mean().item() for name, position in number.items()}


def _features(teacher: Teacher, view: Callable[[Tensor, int], Tensor], rgba_NHWC: Tensor) -> Tensor:
    grids = (teacher(view(part_NHWC, SIDE)) for part_NHWC in rgba_NHWC.split(128))
    return torch.cat([torch.cat([grid.float().mean(1) for grid in pair], dim=1) for pair in grids])


def _moments(x_NF: Tensor) -> tuple[Tensor, Tensor]:
    return x_NF.mean(0), x_NF.std(0) + 1e-4


def _with_one(x_NF: Tensor) -> Tensor:
    return functional.pad(x_NF, (0, 1), value=1.0)


def _ridge(x_NF: Tensor, label_N: Tensor) -> Tensor:
    x_NF = _with_one(x_NF)
    target_NC = functional.one_hot(label_N, len(CANDIDATES)).float()
    return torch.linalg.solve(x_NF.T @ x_NF + RIDGE * torch.eye(x_NF.shape[1]), x_NF.T @ target_NC)


def main() -> None:
    """Print the candidates, those that are drawn least alike first."""
    for name, share in sorted(agreement(fetched_pictures(__doc__)).items(), key=lambda item: item[1]):
        print(f"{share:4.0%} {name}{'' if share >= ENOUGH else ' (too unlike)'}")


if __name__ == "__main__":
    main()
