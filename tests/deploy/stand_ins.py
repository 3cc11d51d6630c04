"""Images (images/) that replace those of compose and Dockerfile.cpu if none can be pulled."""

import hashlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.deploy.docker_engine import docker, has_image, install

FOLDER = Path(__file__).with_name("images")
INDEX_PORT = 8791
"""The port is always the same, because Docker's layer cache depends on the index's address."""


def in_their_place(base: str, prometheus: str, grafana: str) -> dict[str, Any]:
    """An override of a compose file that uses available images. `base` is that of Dockerfile.cpu."""
    changes: dict[str, Any] = {}
    if not has_image(base):
        args = {"BASE": _python(), "TORCH_INDEX": f"http://127.0.0.1:{INDEX_PORT}"}
        changes |= {name: {"build": {"args": args, "network": "host"}} for name in ("setup", "server")}
    if not has_image(prometheus):
        # Debian's promtool has no `check ready` yet.
        test = ["CMD", "wget", "--quiet", "--spider", "http://127.0.0.1:9090/-/ready"]
        changes["prometheus"] = {"image": _prometheus(), "healthcheck": {"test": test}}
    if not has_image(grafana):
        changes["grafana"] = {"image": _built("grafana", f"PROMETHEUS={_prometheus()}")}
    return changes


def _python() -> str:
    name = _name("python")
    if not docker("images", "--quiet", name):
        if shutil.which("mmdebstrap") is None:
            install(["mmdebstrap"])
        subprocess.run(["sh", FOLDER / "python.sh", name], check=True, timeout=600)
    return name


def _prometheus() -> str:
    return _built("prometheus", f"PYTHON={_python()}")


def _built(what: str, argument: str) -> str:
    name = _name(what)
    dockerfile = FOLDER / f"{what}.Dockerfile"
    docker("build", "--tag", name, "--build-arg", argument, "--file", dockerfile, FOLDER, limit_s=600)
    return name


def _name(what: str) -> str:
    """The name of an image, which changes with its recipe."""
    text = b"".join(file.read_bytes() for file in sorted(FOLDER.iterdir()) if file.is_file())
    return f"prismoe-stand-in/{what}:{hashlib.sha256(text).hexdigest()[:12]}"


@contextmanager
def torch_index(folder: Path, torch: str) -> Iterator[None]:
    """An index with torch's CPU build, which pip finds on this machine as in `make install`."""
    wheels = folder / "torch"
    if not list(wheels.glob("*.whl")):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), torch]
        official = ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        if subprocess.run(pip, stderr=subprocess.DEVNULL, timeout=600).returncode != 0:
            subprocess.run([*pip, *official], check=True, timeout=600)
    handler = partial(_Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", INDEX_PORT), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing."""
