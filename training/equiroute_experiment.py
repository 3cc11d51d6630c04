"""Repeats EquiRoute's experiment (osf.io/hfvbc): how many experts text reaches when most tokens are vision.

    python -m prismoe.training.equiroute_experiment [--seeds N] [--plot FILE.svg]

Only the paper's abstract is available. It gives 16 experts, two modalities, vision:text ratios from 4:1 to
32:1 and the results in PUBLISHED. It does not give the number of tokens, the router or a formula. These are
inferred:

- Tokens: 128 vision tokens, and so 32, 16, 8 and 4 text tokens, each with 16 independent normal logits.
- Standard routing: top-1. Then text reaches 16 (1 - (15/16)^n) of 16 experts: 14.0 for 32 tokens and 3.6 for
  4. These are the published 0.875 and 0.250 to the nearest sixteenth.
- MEI: the share of experts that both modalities use (`prismoe.kernels.balance.modality_equity`).
- EquiRoute: the published values at 4:1 and 32:1 are half way between the standard ones and 1:
  (1 + 0.875) / 2 and (1 + 0.250) / 2. So Cross-Modality Expert Reservation is modelled like this: half of the
  experts that text does not reach are reserved for text, and each goes to the text token that scores it
  highest, in addition to the token's own expert. The other two values are close to this model too, so nothing
  else is modelled: Entropy-Guided Token Budgeting has no visible effect on the values, and
  Modality-Contrastive Routing only acts in training.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from prismoe.kernels.balance import modality_equity
from prismoe.training.plots import STYLE, svg

EXPERTS, VISION_TOKENS, RATIOS, MOST_LOADED = 16, 128, (4, 8, 16, 32), 4
RESERVED = 0.5
"""The share of the experts out of text's reach that are reserved for text."""


@dataclass(frozen=True)
class Equity:
    """The results for one ratio. A value that the paper does not report is None."""

    text_share: float | None
    """The text share of the four most loaded experts' load, under standard routing."""
    standard_mei: float | None
    equiroute_mei: float


PUBLISHED = {
    4: Equity(0.200, 0.875, 0.938),
    8: Equity(None, None, 0.875),
    16: Equity(None, None, 0.750),
    32: Equity(0.029, 0.250, 0.625),
}


def top_1_load(logits_TE: Tensor) -> Tensor:
    """The number of tokens of each expert, `[E]`."""
    return logits_TE.argmax(dim=-1).bincount(minlength=logits_TE.shape[1])


def with_reservation(load_E: Tensor, logits_TE: Tensor) -> Tensor:
    """The load after the unreached experts with the best scores are reserved and got one token each."""
    missed_E = load_E == 0
    count = round(RESERVED * int(missed_E.sum()))
    best_score_E = logits_TE.amax(dim=0).masked_fill(~missed_E, -torch.inf)
    return load_E.index_add(0, best_score_E.topk(count).indices, torch.ones(count, dtype=load_E.dtype))


def equity(ratio: int, generator: torch.Generator) -> Equity:
    """Run one draw of the experiment."""
    vision_TE = torch.randn(VISION_TOKENS, EXPERTS, generator=generator, dtype=torch.float64)
    text_TE = torch.randn(VISION_TOKENS // ratio, EXPERTS, generator=generator, dtype=torch.float64)
    vision_E, text_E = top_1_load(vision_TE), top_1_load(text_TE)
    most_loaded = (vision_E + text_E).topk(MOST_LOADED).indices
    share = text_E[most_loaded].sum() / (vision_E + text_E)[most_loaded].sum()
    fair_text_E = with_reservation(text_E, text_TE)
    return Equity(
        share.item(),
        modality_equity(torch.stack([text_E, vision_E]).numpy(), ("text", "image"), least_share=0),
        modality_equity(torch.stack([fair_text_E, vision_E]).numpy(), ("text", "image"), least_share=0),
    )


def mean_equity(ratio: int, seeds: int) -> Equity:
    """The mean over `seeds` draws."""
    draws = [equity(ratio, torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    values = torch.tensor(
        [[d.text_share, d.standard_mei, d.equiroute_mei] for d in draws], dtype=torch.float64
    )
    return Equity(*values.mean(dim=0).tolist())


def table(results: dict[int, Equity]) -> str:
    """A table of the published and the simulated values, with a line for each ratio."""
    lines = ["vision:text   text share   MEI standard   MEI EquiRoute   (published, simulated)"]
    for ratio, found in results.items():
        published = PUBLISHED[ratio]
        pairs = [
            f"{'–' if a is None else format(a, '.3f')} {b:.3f}"
            for a, b in zip(vars(published).values(), vars(found).values(), strict=True)
        ]
        lines.append(f"{ratio:>9}:1   {pairs[0]:>10}   {pairs[1]:>12}   {pairs[2]:>13}")
    return "\n".join(lines)


@rc_context(STYLE)
def plot(results: dict[int, Equity]) -> str:
    """An SVG of MEI by ratio: lines for the simulated values, dots for the published ones."""
    figure = Figure((5.5, 3.5))
    axes = figure.subplots()
    ratios = [f"{ratio}:1" for ratio in results]
    for style, source, of in (("-", "", results), ("o", ", published", PUBLISHED)):
        standard = [math.nan if (mei := of[ratio].standard_mei) is None else mei for ratio in results]
        axes.plot(ratios, standard, style, label=f"standard{source}")
        axes.plot(ratios, [of[ratio].equiroute_mei for ratio in results], style, label=f"EquiRoute{source}")
    axes.set(title="How many of 16 experts both modalities use (MEI)", xlabel="vision : text", ylim=(0, 1.05))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return svg(figure)


def main() -> None:
    """Print the table, and write the plot of --plot."""
    parser = argparse.ArgumentParser(
        description="EquiRoute's experiment: how many experts text reaches.",
        epilog="example:\n  python -m prismoe.training.equiroute_experiment --plot equiroute.svg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=1000, help="draws to average (default: 1000)")
    parser.add_argument("--plot", type=Path, help="SVG file to write a plot to")
    arguments = parser.parse_args()
    results = {ratio: mean_equity(ratio, arguments.seeds) for ratio in RATIOS}
    print(table(results))
    if arguments.plot:
        arguments.plot.write_text(plot(results))


if __name__ == "__main__":
    main()
