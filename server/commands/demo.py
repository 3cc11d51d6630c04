"""`prismoe demo` serves the bundled model, asks it about pictures, and shows which experts were used."""

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
    """A picture, with the name and category of the thing that it shows."""

    path: Path
    name: str
    category: str


def demo(arguments: Sequence[str]) -> int:
    """Run the demo and return its exit status."""
    options, serve_options = demo_parser().parse_known_args(list(arguments))
    port = _free_port(options.host, options.port)
    if port is None:
        return fail(
            f"The server can't listen at {options.host}, port {options.port}: the port is in use, or the "
            "host is not this machine. Choose others with --port and --host."
        )
    serve_settings(serve_options)  # Refuse bad options now, before the server starts.
    pictures = _pictures(bundled_checkpoint() / "pictures")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [
        sys.executable,
        "-P",  # Folders of the current directory must not be imported as packages.
        "-m",
        "prismoe.server.commands.cli",
        "serve",
        *serve_options,
        "--host",
        options.host,
        "--port",
        str(port),
    ]
    with tempfile.NamedTemporaryFile("w", prefix="prismoe-demo-", suffix=".log", delete=False) as log:
        print(f"Starting the server. Its log is {log.name}", flush=True)
        # The server gets its own process group, so that Ctrl-C reaches it only through this process.
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, process_group=0)
    client = Client(f"http://{options.host}:{port}")
    try:
        if not _wait_until_ready(server, client):
            return _server_failed(server, Path(log.name))
        _show(client, pictures)
        if options.once:
            return 0
        print(f"\nTo see which experts each patch used: {client.url}/inspector", flush=True)
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


def load_report(client: Client) -> str:
    """Return the server's expert load by modality as a table, or the reasons why prismoe can't see it."""
    load, routing = ExpertLoad.model_validate(client.get("/v1/routing/load")), client.get("/v1/routing")
    if not load.layers:
        return "\n".join(routing["not_supported"])
    return (
        "Expert load by modality: how many tokens used each expert, and its share\n\n"
        f"{load_table(load)}\n\n{tail_sentence(load, routing)}"
    )


def curl_line(url: str, model: str, picture: Path, question: str) -> str:
    """Return a shell command that asks the server about a picture."""
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,PICTURE"}},
        {"type": "text", "text": question},
    ]
    request = json.dumps({"model": model, "messages": [{"role": "user", "content": content}]})
    # printf is part of the shell. A large picture would be too long for an argument of curl.
    form = request.replace("\\", "\\\\").replace("%", "%%").replace("PICTURE", "%s", 1)
    return (
        f"printf {shlex.quote(form)} \"$(base64 < {shlex.quote(str(picture))} | tr -d '\\n')\" |\n"
        f"  curl -s {url}/v1/chat/completions -H 'Content-Type: application/json' -d @-"
    )


def demo_parser() -> argparse.ArgumentParser:
    """Return the parser of `prismoe demo`."""
    parser = command_parser("demo", "--once --port 8001", usage="[options] [any option of prismoe serve]")
    parser.add_argument("--once", action="store_true", default=False, help="end after the three pictures")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=None, help="port to listen at (default: 8000, or a free one)"
    )
    return parser


def _free_port(host: str, requested: int | None) -> int | None:
    """Return the requested port, or without one 8000 or any free port; None if nothing can listen there."""
    for port in (8000, 0) if requested is None else (requested,):
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
    return fail(f"The server {ended}. The end of its log is above; the whole log is {log}")


def _show(client: Client, pictures: Sequence[Picture]) -> None:
    model = client.model()
    for picture in pictures:
        print(f"\n  {picture.path}\n    (drawn as: {picture.name}, {picture.category})")
        for question in QUESTIONS:
            print(f"    {question:<36}{client.ask(model, picture.path, question)}", flush=True)
    print("\n" + load_report(client))
    print("\nTo ask it yourself:\n")
    print(curl_line(client.url, model, pictures[0].path, QUESTIONS[0]), flush=True)


def _pictures(folder: Path) -> list[Picture]:
    """Return pictures that the bundled model was not trained on, spread over their list."""
    listed = json.loads((folder / "pictures.json").read_text())
    chosen = listed[:: max(1, len(listed) // PICTURES)][:PICTURES]
    return [Picture(folder / entry["file"], entry["name"], entry["category"]) for entry in chosen]
