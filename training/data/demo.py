"""A few held-out drawings to ship with the model. They are chosen at random, not by the model's answers."""

import json
import random
from pathlib import Path

from PIL import Image

from prismoe.training.data.concepts import CONCEPT_BY_EMOJI, Concept
from prismoe.training.data.pictures import STYLE_BY_NAME, Drawing, Pictures
from prismoe.training.data.questions import exam_questions, question_line
from prismoe.training.data.splits import split

COUNT = 6
SIDE = 160  # pixels
LICENCES = ("Apache-2.0", "MIT")
NOTICE = """\
pictures.json names the licence and the source of each picture in this folder. They were scaled and put
on white.

Apache-2.0 (Noto Emoji): https://www.apache.org/licenses/LICENSE-2.0

MIT License (Fluent Emoji)

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN
NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
SMALL_STYLES = ("noto",)  # packaged at 64 pixels only


def choose(drawings: list[Drawing], seed: int = 0) -> list[tuple[Drawing, Concept]]:
    """Held-out drawings of different concepts, under licences that let the package carry them."""
    by_concept: dict[Concept, list[Drawing]] = {}
    for index in split(drawings).held_out:
        drawing = drawings[index]
        concept = CONCEPT_BY_EMOJI.get(drawing.emoji)
        if concept and STYLE_BY_NAME[drawing.style].licence in LICENCES and drawing.style not in SMALL_STYLES:
            by_concept.setdefault(concept, []).append(drawing)
    draw = random.Random(seed)
    chosen = draw.sample(sorted(by_concept, key=lambda concept: concept.name), min(COUNT, len(by_concept)))
    return [(draw.choice(by_concept[concept]), concept) for concept in chosen]


def write_demo(pictures: Pictures, folder: Path) -> None:
    """Write the PNGs, on white; what they show, with their credits; and the exam's questions about them."""
    target = folder / "pictures"
    target.mkdir(exist_ok=True)
    for stale in target.glob("*.png"):
        stale.unlink()
    entries, lines, draw = [], [], random.Random(0)
    for drawing, concept in choose(pictures.load()[0]):
        style = STYLE_BY_NAME[drawing.style]
        ground = Image.new("RGBA", (SIDE, SIDE), "white")
        ground.alpha_composite(Image.fromarray(pictures.render(drawing, SIDE)))
        file = f"{concept.name.replace(' ', '-')}.png"
        ground.convert("RGB").save(target / file)
        asked = exam_questions(draw, concept)
        lines += [question_line(file, question, answer) for _, question, answer in asked]
        entries.append(
            {
                "file": file,
                "name": concept.name,
                "category": concept.category,
                "kind": concept.kind,
                "licence": style.licence,
                "source": f"{style.credit}; npm {style.package} {style.version}",
            }
        )
    (target / "pictures.json").write_text(json.dumps(entries, indent=2) + "\n")
    (target / "questions.jsonl").write_text("".join(lines))
    (target / "NOTICE.txt").write_text(NOTICE)
