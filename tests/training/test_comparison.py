"""The comparison's table, plot and figures, for made-up measurements."""

import math
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from prismoe.kernels.routing import PADDING, TEXT
from prismoe.model_plugins.routing.policy import RouterInputs
from prismoe.model_plugins.routing.registry import choose_routing
from prismoe.training.comparison import prefill
from prismoe.training.comparison.contenders import BASELINE, CONTENDERS, Trained
from prismoe.training.comparison.measure import first_choices_variation
from prismoe.training.comparison.measured import ContenderScores, mean_by_drawing
from prismoe.training.comparison.prefill import Ratio, prefill_ratio
from prismoe.training.comparison.table import difference, plot, table
from prismoe.training.data.cases import Case
from prismoe.training.data.questions import TEMPLATES
from prismoe.training.model.moe_llava import LayerDecision

CASES = [Case("s", drawing, topic, "?", "!") for drawing in range(5) for topic in TEMPLATES]


def made_up(seed: int, share: float) -> ContenderScores:
    right = np.random.default_rng(seed).random(len(CASES)) < share
    return ContenderScores(
        right=right.tolist(),
        vision_experts=2.5,
        text_experts=2,
        load_variation=0.25,
        first_choices_variation=0.5,
        entropy_bits=1.5,
        prefill=Ratio(0.9, 1.1, 1.3),
    )


RESULTS = {BASELINE: made_up(0, 0.5), "ltdr": made_up(1, 0.9), "entropy": made_up(2, 0.5)}


def test_an_error_treats_drawings_as_independent() -> None:
    values = [float(case.drawing % 2) for case in CASES]  # all questions about a drawing have the same result
    by_drawing = np.array([0, 1, 0, 1, 0])
    mean = mean_by_drawing(CASES, values)
    assert mean.value == pytest.approx(0.4)
    assert mean.error == pytest.approx(by_drawing.std(ddof=1) / math.sqrt(5))


def test_a_difference_is_computed_question_by_question() -> None:
    own = RESULTS["ltdr"]
    assert difference(CASES, own, own) == (0, 0)
    more = difference(CASES, own, RESULTS[BASELINE])
    assert more.value * len(CASES) == pytest.approx(sum(own.right) - sum(RESULTS[BASELINE].right))


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


def test_the_table_has_a_row_for_each_router() -> None:
    head, _, *rows = [line.strip("| ").split(" | ") for line in table(CASES, RESULTS).splitlines()]
    assert [row[0] for row in rows] == ["`topk`", "`ltdr`", "`entropy`*"]
    assert all(len(row) == len(head) for row in rows)
    ltdr = dict(zip(head, rows[1], strict=True))
    names = RESULTS["ltdr"].right[:: len(TEMPLATES)]
    assert ltdr["name (5)"] == f"{sum(names) / 5:.1%}"
    assert ltdr["all (20)"].startswith(f"{sum(RESULTS['ltdr'].right) / 20:.1%} ± ")
    assert (ltdr["CV_mean"], ltdr["of the first k"]) == ("0.25", "0.50")
    assert ltdr["prefill time"] == "1.10 (0.90 to 1.30)"


def test_the_plot_has_a_dot_for_each_router() -> None:
    svg = ElementTree.fromstring(plot(CASES, RESULTS))
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert set(RESULTS) <= set(texts)
    intervals = svg.findall(".//{*}g[@id='LineCollection_1']/{*}path")
    dots = [float(dot.attrib["x"]) for dot in svg.iter("{http://www.w3.org/2000/svg}use")]
    for interval, dot in zip(intervals, dots, strict=True):
        low, high = map(float, re.findall(r"[ML] (\S+)", interval.attrib["d"]))
        assert low < dot and low + high == pytest.approx(2 * dot)
    ltdr, entropy = (mean_by_drawing(CASES, RESULTS[name].right).value for name in ("ltdr", "entropy"))
    assert (dots[1] > dots[2]) == (ltdr > entropy)


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
