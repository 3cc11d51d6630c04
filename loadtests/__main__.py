"""`python -m prismoe.loadtests [URL]`: puts load on a server, and reports the results.

Without a URL it starts `prismoe serve` with the bundled model. It ends with status 1 if a request failed,
if a bad request was not refused, or if the server's totals differ from the client's.
"""

import argparse
import asyncio
import json
import shlex
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
from pydantic import ValidationError

from prismoe.loadtests import saturation
from prismoe.loadtests.bench import Bench
from prismoe.loadtests.local_server import CHECKPOINT, local_server
from prismoe.loadtests.report import write_report
from prismoe.loadtests.results import Run, totals_agree
from prismoe.loadtests.scenarios import Scenario, mixed_traffic, standard
from prismoe.loadtests.soak import consistent, soak
from prismoe.loadtests.target import counters, difference, find, running_requests
from prismoe.loadtests.traffic import client, picture

WARM_UP = 8
RAMP = "ramp-to-saturation"
QUESTIONS = 48


def main() -> int:
    """Run the load test, and return the exit status."""
    args = _parser().parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        against = Run.model_validate_json(args.against.read_text()) if args.against else None
        with (
            local_server(folder / "server.log")
            if args.url is None
            else nullcontext((args.url, args.pid)) as (
                url,
                pid,
            )
        ):
            run = asyncio.run(_run(args, url, pid, folder))
    except (httpx.HTTPError, OSError, RuntimeError, ValueError) as error:
        message = _sentence(error) if isinstance(error, ValidationError) else str(error)
        print(f"loadtests: {message}", file=sys.stderr)
        return 1
    print(f"The report is {write_report(run, against, folder)}")
    for check in run.checks:
        if not check.holds:
            print(f"{check.what}: {check.left:g} and {check.right:g} differ.", file=sys.stderr)
    if run.errors:
        print(f"Errors: {run.errors}. The report names them.", file=sys.stderr)
    return 0 if run.sound else 1


async def _run(args: argparse.Namespace, url: str, pid: int | None, folder: Path) -> Run:
    if pid is not None and not psutil.pid_exists(pid):
        raise ValueError(
            f"There is no process {pid}: give the id of the server's process as --pid, or leave it out."
        )
    target = await find(url, args.tokenizer or (str(CHECKPOINT) if args.url is None else None))
    print(f"{target.model} at {url}: a picture is {target.image_tokens:g} vision tokens.", flush=True)
    scenarios, ramps = _chosen(args, standard(target, args.scale, _one_picture(folder)))
    async with client(url) as session:
        bench = Bench(target, session, args.objective, folder / "bench.log")
        await bench.run(mixed_traffic("warm-up", WARM_UP, seed=99))
        bench.phases.clear()
        before = bench.counters
        for scenario in scenarios:
            await bench.run(scenario)
        point = await saturation.ramp(bench, args.scale) if ramps else None
        if point is not None:
            print(
                f"Saturation: {point.requests_per_s:.2f} requests/s with {point.at_once} at once.", flush=True
            )
        soaked = None
        if args.soak is not None:
            rate = args.rate or args.share * (point.requests_per_s if point else 0)
            soaked = await soak(bench, session, args.soak, rate, args.bad, pid)
        counted = difference(before, await counters(session, bench.counters))
        checks = [*totals_agree(bench.phases), *consistent(counted, await running_requests(session))]
    return Run(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["python", "-m", "prismoe.loadtests", *sys.argv[1:]]),
        target=target,
        objective=args.objective,
        phases=bench.phases,
        saturation=point,
        soak=soaked,
        checks=checks,
    )


def _chosen(args: argparse.Namespace, known: list[Scenario]) -> tuple[list[Scenario], bool]:
    """The scenarios to run, and whether to ramp. Raises ValueError if a name is unknown."""
    by_name = {scenario.name: scenario for scenario in known}
    names = args.scenario or ([] if args.soak is not None else [*by_name, RAMP])
    ramps = RAMP in names or (args.soak is not None and args.rate is None)
    scenarios = []
    for name in names:
        if name == RAMP:
            continue
        if name not in by_name and not Path(name).is_file():
            raise ValueError(
                f"There is no scenario or file {name}. The scenarios are: {', '.join([*by_name, RAMP])}."
            )
        scenarios.append(by_name.get(name) or Scenario.model_validate_json(Path(name).read_text()))
    return scenarios, ramps


def _one_picture(folder: Path) -> Path:
    """Write a custom image set with many questions about one picture, and return its path."""
    image = {"type": "image_url", "image_url": {"url": picture(0)}}
    lines = [
        json.dumps({"content": [image, {"type": "text", "text": f"Is this number {number}?"}]})
        for number in range(QUESTIONS)
    ]
    path = folder / "one-picture.jsonl"
    path.write_text("\n".join(lines))
    return path


def _sentence(error: ValidationError) -> str:
    return " ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}." for fault in error.errors())


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m prismoe.loadtests",
        description=__doc__,
        epilog="example:\n  python -m prismoe.loadtests http://127.0.0.1:8000 --scale 0.1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "url",
        nargs="?",
        help="any OpenAI-compatible server (default: start one); its keys are in the environment variables "
        "OPENAI_API_KEY and PRISMOE_METRICS_KEY",
    )
    parser.add_argument(
        "--tokenizer", help="folder of the tokenizer, if the server's model is not on this machine"
    )
    parser.add_argument(
        "--scenario",
        action="append",
        help="name of a scenario, or a JSON file with one; repeat the option for more (default: all)",
    )
    parser.add_argument(
        "--scale", type=_positive, default=1.0, help="factor on the number of requests (default: 1)"
    )
    parser.add_argument(
        "--objective",
        type=lambda text: text.split(","),
        default=["ttft:2000", "tpot:100"],
        metavar="LIMITS",
        help="most milliseconds of ttft, tpot and e2el in a good request (default: ttft:2000,tpot:100)",
    )
    parser.add_argument("--soak", type=_positive, metavar="MINUTES", help="send mixed traffic for this time")
    parser.add_argument(
        "--share",
        type=_share,
        default=0.8,
        help="load of a soak, as a share of the saturation point (default: 0.8)",
    )
    parser.add_argument(
        "--rate", type=_positive, help="load of a soak in requests a second, instead of --share"
    )
    parser.add_argument(
        "--bad", type=_share, default=0.0, help="share of bad requests in a soak (default: 0)"
    )
    parser.add_argument("--pid", type=int, help="id of the server's process, whose memory a soak records")
    parser.add_argument(
        "--against", type=Path, metavar="REPORT.json", help="report of another run to compare with"
    )
    parser.add_argument(
        "--output", default="build/load", help="folder to write the report to (default: build/load)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
