"""The comparison's table, plot and figures, for made-up measurements."""

import math
import re
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.training.comparison import prefill, train
from prismoe.training.comparison.__main__ import Comparison
from prismoe.training.comparison.contenders import BASELINE, CONTENDERS, ROUTERS, SEEDED, Trained, runs
from prismoe.training.comparison.figures import accuracy
from prismoe.training.comparison.measured import (
    ContenderScores,
    LayerFigures,
    TrainingFigures,
    TrainingStep,
)
from prismoe.training.comparison.prefill import Ratio, prefill_ratio
from prismoe.training.comparison.routing_figures import BUCKETS, first_choices_variation, layer_figures
from prismoe.training.comparison.rows import Accuracies, Row, Run, rows_of
from prismoe.training.comparison.table import table, topics_table
from prismoe.training.comparison.train import SETTINGS
from prismoe.training.data.cases import Case, Exam, Look
from prismoe.training.data.questions import DRAWING_TOPICS, SCENE_TOPICS
from prismoe.training.intervals import Clusters
from prismoe.training.model.moe_llava import LayerDecision
from tests.paths import REPOSITORY

LAYER = LayerFigures(
    rpv_widest=0.1,
    rpv_vision=[0.75, 0.25],
    rpv_text=[0.5, 0.5],
    above_mean=0.13,
    load_vision=[0.4, 0.3, 0.2, 0.1],
    load_text=[0.25] * 4,
)


def questions(looks: Sequence[Look]) -> list[Case]:
    """Of 15 drawings, of which a picture shows up to three."""
    return [
        Case("s", number, topic, "?", "!", tuple({number, number // 2, number // 3}), look)
        for look in looks
        for number in range(15)
        for topic in (SCENE_TOPICS if look == "scene" else DRAWING_TOPICS)
    ]


CASES, OLD_CASES = questions(["whole", "small", "scene"]), questions(["whole"])


def made_up(seed: int, share: float, step_seconds: float | None = 1.0) -> Run:
    draw = np.random.default_rng(seed)
    scores = ContenderScores(
        seconds=90,
        right=(draw.random(len(CASES)) < share).tolist(),
        old_right=(draw.random(len(OLD_CASES)) < share).tolist(),
        vision_experts=2.5,
        text_experts=2,
        load_variation=0.25,
        first_choices_variation=0.5,
        entropy_bits=1.5,
        perplexity=1.25 + seed / 10,
        layers=[LAYER, LAYER],
        prefill=Ratio(0.9, 1.1, 1.3),
    )
    if step_seconds is None:
        return Run(scores, None)
    steps = [
        TrainingStep(
            step=step, load_variation=0.5, first_choices_variation=0.6, entropy_bits=2, answer_loss=1
        )
        for step in (5, 10)
    ]
    return Run(scores, TrainingFigures(seconds=90, step_seconds=step_seconds, steps=steps))


ROWS = {
    BASELINE: Row(BASELINE, [made_up(seed, 0.5) for seed in range(3)]),
    "ltdr": Row("ltdr", [made_up(seed, 0.9, 1.5) for seed in range(3, 6)]),
    "top_any": Row("top_any", [made_up(6, 0.5)]),
    "entropy": Row("entropy", [made_up(7, 0.5, None)]),
}
SCENES = Accuracies(CASES, ROWS, lambda of: of.right)


def test_a_share_is_the_mean_of_the_runs() -> None:
    shares = [sum(run.scores.right) / len(CASES) for run in ROWS["ltdr"].runs]
    assert SCENES.share("ltdr").value == pytest.approx(sum(shares) / 3)
    assert SCENES.difference(BASELINE).value == 0
    more = sum(shares) / 3 - SCENES.share(BASELINE).value
    assert SCENES.difference("ltdr").value == pytest.approx(more)


def test_an_error_has_the_seeds_variance_by_the_number_of_runs() -> None:
    shares = [[sum(run.scores.right) / len(CASES) for run in ROWS[name].runs] for name in (BASELINE, "ltdr")]
    assert SCENES.seed_variance == pytest.approx(np.mean([np.var(own, ddof=1) for own in shares]))
    drawings = Clusters([case.drawings for case in CASES])
    for name, count in (("ltdr", 3), ("top_any", 1)):
        own = np.mean([run.scores.right for run in ROWS[name].runs], axis=0)
        expected = math.hypot(drawings.mean(own.tolist()).error, math.sqrt(SCENES.seed_variance / count))
        assert SCENES.share(name).error == pytest.approx(expected)
    assert SCENES.difference("ltdr").error > math.sqrt(SCENES.seed_variance * 2 / 3)


def test_a_part_of_the_questions_is_counted_alone() -> None:
    words = Accuracies(CASES, ROWS, lambda of: of.right, lambda case: case.topic == "word")
    chosen = [number for number, case in enumerate(CASES) if case.topic == "word"]
    assert words.questions == 15
    right = [run.scores.right[number] for run in ROWS["ltdr"].runs for number in chosen]
    assert words.share("ltdr").value == pytest.approx(sum(right) / 45)


def test_a_row_needs_all_of_its_runs() -> None:
    found = {name: made_up(0, 0.5) for name in ("topk", "topk, second seed", "top_any", "ltdr")}
    assert list(rows_of(found)) == ["top_any"]
    found["topk, third seed"] = made_up(1, 0.5)
    assert [(name, len(row.runs)) for name, row in rows_of(found).items()] == [("topk", 3), ("top_any", 1)]


def test_eight_rows_have_three_seeds() -> None:
    assert len(SEEDED) == 8
    for name in SEEDED:
        trained = [run for run in runs(name).values() if isinstance(run, Trained)]
        assert [run.seed for run in trained] == [0, 1, 2]
        assert len({run.model_copy(update={"seed": 0}).model_dump_json() for run in trained}) == 1
    assert set(CONTENDERS) == {run for name in ROUTERS for run in runs(name)}
    assert len(CONTENDERS) == len(ROUTERS) + 16


def test_first_choices_are_counted_without_extra_experts() -> None:
    """Tail tokens of one layer use all four experts; the other layer has a shared expert in front."""
    segment = torch.tensor([0, 0, TEXT, TEXT, PADDING])
    tail = torch.tensor([[0, 1, 2, 3], [0, 1, 3, 2], [0, 2, 0, 0], [0, 1, 0, 0], [3, 2, 0, 0]])
    shared = torch.tensor([[3, 0], [3, 0], [3, 0], [3, 1], [3, 2]])
    layers = [
        decision(segment, tail, torch.tensor([4, 4, 2, 2, 2]), chosen_among=4),
        decision(segment, shared, torch.full((5,), 2), chosen_among=3),
    ]
    expected = [np.array([4, 3, 1, 0]), np.array([3, 1, 0])]
    variations = [load.std() / load.mean() for load in expected]
    assert first_choices_variation(layers, [2, 1]) == pytest.approx(np.mean(variations))


def decision(segment: Tensor, experts: Tensor, count: Tensor, chosen_among: int) -> LayerDecision:
    weights = (torch.arange(experts.shape[1]) < count[:, None]).float()
    asks_nothing = torch.zeros(len(segment), 2, dtype=torch.int32)
    step = RouterInputs(torch.empty(len(segment), 0), torch.empty(0), segment, asks_nothing, {}, 4)
    probs = torch.full((len(segment), chosen_among), 1 / chosen_among)
    return LayerDecision(probs, experts, weights, segment == 0, step, asked=None)


def test_a_layers_figures_are_by_modality() -> None:
    segment = torch.tensor([0, 0, 1, 1, TEXT, TEXT, PADDING])
    experts = torch.tensor([[0, 1], [0, 1], [2, 1], [3, 1], [3, 2], [3, 0], [0, 0]])
    layer = decision(segment, experts, torch.full((7,), 2), chosen_among=4)
    likely = torch.tensor([0.25, 0.9, 0.5, 0.5, 0.25, 0.7, 0.25])
    probs = torch.cat([likely[:, None], ((1 - likely) / 3)[:, None].expand(-1, 3)], dim=1)
    found = layer_figures(replace(layer, probs_TE=probs))
    assert found.above_mean == 0.25  # one of the first image's two; the second's are equal
    assert found.load_vision == pytest.approx([2 / 8, 4 / 8, 1 / 8, 1 / 8])
    assert found.load_text == pytest.approx([1 / 4, 0, 1 / 4, 2 / 4])
    assert len(found.rpv_vision) == BUCKETS and found.rpv_vision[0] == 0.25 and found.rpv_text[0] == 0.5
    assert sum(found.rpv_text) == pytest.approx(1) and 0 < found.rpv_widest < 0.16


def test_a_recorder_keeps_every_fifth_step_and_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, *np.cumsum([9] + [2] * 8 + [3.0])])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    segment = torch.tensor([0, 0, TEXT, PADDING])
    layer = decision(
        segment,
        torch.tensor([[0, 1], [0, 2], [0, 3], [3, 3]]),
        torch.full((4,), 2),
        chosen_among=4,
    )
    recorder = train.Recorder([1])
    for step in range(1, 11):
        recorder(step, {"answer": torch.tensor(0.5, requires_grad=True)}, [layer])
    found = recorder.figures()
    assert (found.seconds, found.step_seconds) == (28, 2)
    assert [step.step for step in found.steps] == [5, 10]
    uses, first = np.array([3, 1, 1, 1]), np.array([3, 0, 0, 0])
    assert found.steps[0].load_variation == pytest.approx(uses.std() / uses.mean())
    assert found.steps[0].first_choices_variation == pytest.approx(first.std() / first.mean())
    assert (found.steps[0].entropy_bits, found.steps[0].answer_loss) == pytest.approx((2, 0.5))


def cells(markdown: str, router: str) -> dict[str, str]:
    head, _, *rows = [line.strip("| ").split(" | ") for line in markdown.splitlines()]
    assert all(len(row) == len(head) for row in rows)
    [row] = [row for row in rows if row[0] == router]
    return dict(zip(head, row, strict=True))


def test_the_table_has_a_row_for_each_router() -> None:
    text = table(CASES, OLD_CASES, ROWS)
    assert [line.split(" | ")[0] for line in text.splitlines()[2:]] == [
        "| `topk`",
        "| `ltdr`",
        "| `top_any`",
        "| `entropy`*",
    ]
    ltdr = cells(text, "`ltdr`")
    share, more = SCENES.share("ltdr"), SCENES.difference("ltdr")
    assert ltdr["all (225)"] == f"{share.value:.1%} ± {1.96 * share.error:.1%}"
    assert ltdr["minus `topk`, points"] == f"{more.value * 100:+.1f} ± {1.96 * more.error * 100:.1f}"
    whole = [run.scores.right[:60] for run in ROWS["ltdr"].runs]
    assert ltdr["single drawings (60)"] == f"{np.mean(whole):.1%}"
    assert ltdr["old exam (60)"].startswith(
        f"{np.mean([r.scores.old_right for r in ROWS['ltdr'].runs]):.1%} ± "
    )
    assert (ltdr["runs"], ltdr["CV_mean"], ltdr["of the first k"]) == ("3", "0.25", "0.50")
    assert (ltdr["training time"], ltdr["prefill time"]) == ("1.50", "1.10 (0.90 to 1.30)")
    assert cells(text, "`entropy`*")["training time"] == "" == cells(text, "`topk`")["minus `topk`, points"]


def test_the_answers_are_told_by_topic() -> None:
    by_topic = cells(topics_table(CASES, ROWS), "`ltdr`")
    assert len(by_topic) == 1 + 2 * len(DRAWING_TOPICS) + len(SCENE_TOPICS)
    small = [
        run.scores.right[number]
        for run in ROWS["ltdr"].runs
        for number, case in enumerate(CASES)
        if (case.look, case.topic) == ("small", "name")
    ]
    assert by_topic["name, small (15)"].startswith(f"{np.mean(small):.1%} ± ")


def test_the_plot_has_a_dot_for_each_router() -> None:
    svg = ElementTree.fromstring(accuracy(CASES, ROWS))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert set(ROWS) <= set(texts)
    intervals = svg.findall(".//{*}g[@id='LineCollection_1']/{*}path")
    dots = [float(dot.attrib["x"]) for dot in svg.iter("{http://www.w3.org/2000/svg}use")]
    for interval, dot in zip(intervals, dots, strict=True):
        low, high = map(float, re.findall(r"[ML] (\S+)", interval.attrib["d"]))
        assert low < dot and low + high == pytest.approx(2 * dot)
    assert dots[1] > max(dots[0], *dots[2:])


def test_the_page_and_its_figures(tmp_path: Path) -> None:
    comparison = Comparison.__new__(Comparison)
    comparison.out, comparison.settings = tmp_path, SETTINGS
    comparison.exam, comparison.old_exam = Exam(CASES, {}), Exam(OLD_CASES, {})
    for row in ROWS.values():
        for name, run in zip(runs(row.name), row.runs, strict=True):
            folder = tmp_path / name.replace(", ", "-").replace(" ", "-")
            folder.mkdir()
            (folder / "measured.json").write_text(run.scores.model_dump_json())
            if run.training:
                (folder / "trained.json").write_text(run.training.model_dump_json())
    docs = tmp_path / "docs"
    docs.mkdir()
    comparison.write(docs)
    text = (docs / "router-comparison.md").read_text()
    assert table(CASES, OLD_CASES, ROWS) in text and topics_table(CASES, ROWS) in text
    assert "$" not in text and f"{(8 * 90 + 7 * 90) / 3600:.1f} hours" in text
    assert set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)) == {file.name for file in docs.glob("*.svg")}
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (docs / target).exists() or (REPOSITORY / "docs" / target).exists(), target
    names = {text.text for text in ElementTree.parse(docs / "router-comparison-rpv.svg").iter() if text.text}
    assert {"topk", "ltdr", "13% above the mean"} <= names and "top_any" not in names


@pytest.mark.parametrize("name", CONTENDERS)
def test_a_contender_can_be_served(name: str) -> None:
    contender = CONTENDERS[name]
    if isinstance(contender, Trained):
        routing = choose_routing(None, contender.routing, 2, {0: contender.experts})
        assert routing.source == "checkpoint"
    else:
        assert contender.options[:2] == ("--policy", name)


class Slow(BaseHTTPRequestHandler):
    """Counts the seconds of prefill that its port stands for, for each prompt."""

    seconds: dict[int, float]
    prompts: dict[int, list[bytes]]

    def do_GET(self) -> None:
        port = self._port
        count, metric = len(self.prompts[port]), prefill.METRIC
        counted = (
            f'{metric}_sum{{engine="0"}} {count * self.seconds[port]}\n{metric}_count{{engine="0"}} {count}'
        )
        self._send(counted if self.path == "/metrics" else '{"data": [{"id": "m"}]}')

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.prompts[self._port].append(body)
        self._send('{"choices": [{"message": {"content": ""}}]}')

    @property
    def _port(self) -> int:
        assert isinstance(self.server, ThreadingHTTPServer)
        return self.server.server_port

    def _send(self, body: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def urls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Two servers. The first takes three times as long."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Slow) for _ in range(2)]
    ports = [server.server_port for server in servers]
    monkeypatch.setattr(Slow, "seconds", dict(zip(ports, (0.75, 0.25), strict=True)), raising=False)
    monkeypatch.setattr(Slow, "prompts", {port: [] for port in ports}, raising=False)
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield [f"http://127.0.0.1:{port}" for port in ports]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_prefill_time_is_the_servers_count(urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "ROUNDS", 4)
    for _ in range(2):  # of two contenders, next to one server
        assert prefill_ratio(urls[0], urls[1], pngs=[b"png"] * 9) == pytest.approx((3, 3, 3))
    own, baseline = Slow.prompts.values()
    assert own == baseline
    for prompts in (own, baseline):
        assert len(prompts) == len(set(prompts)) == 2 * 5 * prefill.PROMPTS
        assert all(body.count(b"image_url") == 2 * prefill.PICTURES for body in prompts)
