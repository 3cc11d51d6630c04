"""`prismoe demo`: serve the bundled model, ask it about pictures, and show which experts the tokens used."""

import argparse
import json
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.server.commands.arguments import serve_settings
from prismoe.server.commands.client import Client
from prismoe.server.commands.load_table import load_table, tail_sentence
from prismoe.server.commands.parser import command_parser
from prismoe.server.errors import fail
from prismoe.server.metrics.expert_load import ExpertLoad

QUESTIONS = ("What is this?", "Which category does it belong to?")
PICTURES = 3
START_LIMIT_S = 300
LOG_LINES = 25


@dataclass(frozen=True)
class Picture:
    """A picture, and what its artist drew."""

    path: Path
    name: str
    category: str


def demo(arguments: Sequence[str]) -> int:
    """Run the demo and return its exit status."""
    own, rest = demo_parser().parse_known_args(list(arguments))
    port = _free_port(own.host, own.port)
    if port is None:
        return fail(
            f"Nothing can listen at {own.host}, port {own.port}: the port is in use, or the host is not this "
            "machine. Choose others with --port and --host."
        )
    serve_settings(rest)  # What can't be served is refused here, before the wait.
    pictures = _pictures(bundled_checkpoint() / "pictures")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [
        sys.executable,
        "-P",  # the folders of the directory it runs in are no packages
        "-m",
        "prismoe.server.commands.cli",
        "serve",
        *rest,
        "--host",
        own.host,
        "--port",
        str(port),
    ]
    with tempfile.NamedTemporaryFile("w", prefix="prismoe-demo-", suffix=".log", delete=False) as log:
        print(f"Starting the server. Its log is {log.name}", flush=True)
        # A process group of its own, so that Ctrl-C reaches it once, from here.
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    client = Client(f"http://{own.host}:{port}")
    try:
        if not _wait_until_ready(server, client):
            return _server_failed(server, Path(log.name))
        _show(client, pictures)
        if own.once:
            return 0
        print(f"\nTo see where each patch went: {client.url}/inspector", flush=True)
        print(f"Serving at {client.url} until you press Ctrl-C.", flush=True)
        server.wait()
        return _server_failed(server, Path(log.name))
    except OSError as error:
        return fail(f"The server did not answer as the demo expects: {error}. Its log is {log.name}")
    except KeyboardInterrupt:
        print("\nStopping the server.", flush=True)
        return 0
    finally:
        server.terminate()
        server.wait()


def load_told(client: Client) -> str:
    """The server's expert load by modality as a table, or why it can't be seen."""
    load, routing = ExpertLoad.model_validate(client.get("/v1/routing/load")), client.get("/v1/routing")
    if not load.layers:
        return "\n".join(routing["not_supported"])
    return (
        "Expert load by modality: how many tokens used each expert, and its share\n\n"
        f"{load_table(load)}\n\n{tail_sentence(load, routing)}"
    )


def curl_line(url: str, model: str, picture: Path, question: str) -> str:
    """A command that asks about a picture, to be pasted into a shell."""
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}},
        {"type": "text", "text": question},
    ]
    request = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    # printf is part of the shell: a large picture would be too long for an argument of curl's.
    form = request.replace("\\", "\\\\").replace("%", "%%").replace("PICTURE", "%s", 1)
    return (
        f"printf {shlex.quote(form)} \"$(base64 < {shlex.quote(str(picture))} | tr -d '\\n')\" |\n"
        f"  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d @-"
    )


def demo_parser() -> argparse.ArgumentParser:
    """Of `prismoe demo`."""
    parser = command_parser("demo", "--once --port 8001", usage="[options] [any option of prismoe serve]")
    parser.add_argument("--once", action="store_true", default=False, help="end after the three pictures")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=None, help="port to listen at (default: 8000, or a free one)"
    )
    return parser


def _free_port(host: str, asked: int | None) -> int | None:
    """The port that the user asked for, else 8000 or a free one; None where nothing can listen there."""
    for port in (8000, 0) if asked is None else (asked,):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    return None


def _wait_until_ready(server: subprocess.Popen[bytes], client: Client) -> bool:
    start = time.monotonic()
    while server.poll() is None and time.monotonic() - start < START_LIMIT_S:
        if client.healthy():
            print(f"Ready after {time.monotonic() - start:.0f} s.", flush=True)
            return True
        time.sleep(0.2)
    return False


def _server_failed(server: subprocess.Popen[bytes], log: Path) -> int:
    print(*log.read_text(errors="replace").splitlines()[-LOG_LINES:], sep="\n", file=sys.stderr)
    ended = "did not get ready" if server.poll() is None else f"ended with status {server.returncode}"
    return fail(f"The server {ended}. The end of its log is above; the whole is {log}")


def _show(client: Client, pictures: Sequence[Picture]) -> None:
    model = client.model()
    for picture in pictures:
        print(f"\n  {picture.path}\n    (drawn as: {picture.name}, {picture.category})")
        for question in QUESTIONS:
            print(f"    {question:<36}{client.ask(model, picture.path, question)}", flush=True)
    print("\n" + load_told(client))
    print("\nTo ask it yourself:\n")
    print(curl_line(client.url, model, pictures[0].path, QUESTIONS[0]), flush=True)


def _pictures(folder: Path) -> list[Picture]:
    """A few of the pictures that the bundled model never saw, from all over their list."""
    listed = json.loads((folder / "pictures.json").read_text())
    chosen = listed[:: max(1, len(listed) // PICTURES)][:PICTURES]
    return [Picture(folder / entry["file"], entry["name"], entry["category"]) for entry in chosen]
