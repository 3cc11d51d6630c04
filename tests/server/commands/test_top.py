"""`prismoe top`, with made-up readings and with a real server."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from prismoe.server.commands.cli import main
from prismoe.server.commands.top import NoSnapshot, Snapshot, load_bars, read, restarted, view
from prismoe.server.metrics.expert_load import ExpertLoad
from tests.server.fake_engine import LOAD, NOTHING, UNSEEN, UNSEEN_WHY, large_load, routing
from tests.server.media.web import Counted, answer, running
from tests.server.running import Server


def test_the_view_shows_the_change_between_two_readings() -> None:
    nothing = ExpertLoad.model_validate(NOTHING)
    names = ("prompt_tokens_total", "generation_tokens_total", "num_requests_waiting", "kv_cache_usage_perc")
    before = Snapshot(10.0, nothing, {f"vllm:{name}": 1 for name in names})
    engine = dict(zip([f"vllm:{name}" for name in names], [4001, 41, 7, 0.25], strict=True))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(view(before, Snapshot(12.0, ExpertLoad.model_validate(LOAD), engine)))
    head, *lines = capture.get().splitlines()
    assert "prompts 2,000 tokens/s" in head and "answers 20 tokens/s" in head
    assert "waiting 7" in head and "KV cache 25%" in head
    (row,) = [line for line in lines if "image" in line and line.split()[1] == "0"]
    cells = [cell.strip() for cell in row.split("│")]
    assert cells[2:5] == ["image", "32", "2.50"]


class TwoEngines:
    """A client's data of a server with two engines."""

    def text(self, _: str) -> str:
        return "".join(
            f'# TYPE vllm:{name} gauge\nvllm:{name}{{engine="{engine}"}} {value}\n'
            for name, values in {"kv_cache_usage_perc": (0.7, 0.8), "num_requests_waiting": (2, 3)}.items()
            for engine, value in enumerate(values)
        )

    def __init__(self, load: dict[str, Any] = NOTHING) -> None:
        self._load = load

    def get(self, path: str) -> object:
        return self._load if path == "/v1/routing/load" else routing().model_dump()


def test_queues_of_engines_add_up_and_the_fullest_cache_counts() -> None:
    assert read(TwoEngines()).engine == {  # type: ignore[arg-type]
        "vllm:kv_cache_usage_perc": 0.8,
        "vllm:num_requests_waiting": 5,
    }


def told(load: dict[str, Any], lines: int | None = None) -> list[str]:
    """The view's lines after its head, two seconds after nothing was counted."""
    nothing = ExpertLoad.model_validate(large_load(0))
    now = Snapshot(2.0, ExpertLoad.model_validate(load), {})
    console = Console(width=120)
    with console.capture() as capture:
        console.print(view(Snapshot(0.0, nothing, {}), now, lines))
    return capture.get().splitlines()[1:]


def test_a_large_model_is_shown_by_its_most_and_least_loaded_experts() -> None:
    lines = told(large_load())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert len(rows) == 48 * 3
    assert rows[2] == ["0", "video", "1,600", "8.00", "127 (1.0%)", "0 (0.5%)"]
    assert max(map(len, lines)) < 80


def test_if_not_all_layers_fit_the_most_uneven_are_shown() -> None:
    load = large_load()
    uneven = [[1600 * 8] + [0] * 127, *load["expert_tokens"][0][1:]]
    load["expert_tokens"] = [
        uneven if layer in (7, 30) else rows for layer, rows in enumerate(load["expert_tokens"])
    ]
    lines = told(load, lines=1 + 12)
    assert len(lines) == 12 - 1
    assert [line.split()[1] for line in lines if "text" in line] == ["7", "30"]
    assert lines[-1] == "These are the 2 of 48 layers with the most uneven load."
    assert len(told(load, lines=1)) == 3 + 5  # one layer, however few lines there are


def test_a_model_whose_layers_cannot_be_seen_has_a_reason() -> None:
    now = read(TwoEngines(UNSEEN))  # type: ignore[arg-type]
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view(now, dataclasses.replace(now, at=now.at + 1)))
    assert capture.get().splitlines()[1:] == [UNSEEN_WHY]


def test_bars_have_the_height_of_the_load() -> None:
    assert load_bars([0, 1, 50, 100]).split() == ["▁" * 11, "▅" * 11, "█" * 11]
    assert len(load_bars([1] * 128)) == 128
    assert load_bars([0, 0]).strip() == ""


def test_a_real_server_is_shown(server: Server) -> None:
    options = ["--once", "--interval", "0.5", "--url", server.url]
    run = subprocess.run(
        [sys.executable, "-P", "-m", "prismoe.server.commands.cli", "top", *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0 and "running 0" in run.stdout and "image" in run.stdout, run
    assert run.stdout.endswith("┘\n"), run


def reading(at: float, load: dict[str, object]) -> Snapshot:
    return Snapshot(at, ExpertLoad.model_validate(load), {})


def test_it_survives_a_restart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    readings: Iterator[Snapshot | BaseException] = iter(
        [
            reading(1, LOAD),
            NoSnapshot("No prismoe server answers at X (refused)."),
            NoSnapshot("What answers at X is not a prismoe server."),
            reading(4, NOTHING),
            reading(5, LOAD),
            reading(6, NOTHING),  # a restart between two readings
            KeyboardInterrupt(),
        ]
    )

    def next_told(_: object) -> Snapshot:
        each = next(readings)
        if isinstance(each, BaseException):
            raise each
        return each

    monkeypatch.setattr("prismoe.server.commands.top.read", next_told)
    monkeypatch.setattr(
        "prismoe.server.commands.top.Console", lambda: Console(force_terminal=True, width=120)
    )
    assert main(["top", "--interval", "0.001"]) == 0
    shown = capsys.readouterr().out
    assert "No prismoe server answers at X (refused). Trying again." in shown
    assert shown.count("tokens/s") == 2  # one view, from the two readings in the fifth second
    assert list(readings) == []


def test_a_restart_is_detected_by_lower_counts_or_other_layers() -> None:
    assert not restarted(reading(1, NOTHING), reading(2, NOTHING))
    assert not restarted(reading(1, NOTHING), reading(2, LOAD))
    assert restarted(reading(1, LOAD), reading(2, NOTHING))
    more_text = {**LOAD, "tokens": [[1000, 1], [1000, 1]]}
    assert restarted(reading(1, LOAD), reading(2, more_text))  # fewer images than before
    assert restarted(reading(1, NOTHING), reading(2, {**LOAD, "layers": [1, 3]}))
    assert restarted(reading(1, NOTHING), reading(2, large_load()))


@pytest.mark.parametrize("page", [b"<html>", b"{}", b"\xff", b"# TYPE"])
def test_a_page_without_prismoes_metrics_gives_a_message(
    page: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Counted("127.0.0.1", behaviours={"/metrics": answer(page), "/v1/routing/load": answer(page)})
    with running(other):
        url = f"http://127.0.0.1:{other.server_port}"
        assert main(["top", "--once", "--url", url]) == 1
    assert capsys.readouterr().err == (
        f"prismoe: The server at {url} is not a prismoe server. Give the server's URL with --url.\n"
    )


def test_a_missing_server_gives_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--url", "http://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("prismoe: No prismoe server answers at http://127.0.0.1:9 (")


@pytest.mark.parametrize("interval", ["0", "-1", "often", "nan", "inf"])
def test_a_wrong_interval_is_a_sentence(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["top", f"--interval={interval}"])
    assert "--interval: give a number of seconds greater than 0" in capsys.readouterr().err
