"""Servers that are started with the options of commands of the pages."""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.server.access.keys import Role, add_key
from tests.doc_commands import documented, shell
from tests.model_plugins.in_tree.checkpoints import make_checkpoint
from tests.server.conftest import url_part, user
from tests.server.running import Server

pytestmark = pytest.mark.server


@contextmanager
def served(folder: Path, model: Path, *commands: str) -> Iterator[Server]:
    """A server with the options of all these commands, and its keys in the folder."""
    options = [shlex.split(command)[2:] for command in commands]
    words = [word for words in options for word in words if word != "MODEL"]
    keys = [str(folder / word) if word == "keys.txt" else word for word in words]
    server = Server(folder / "log", str(model), *keys)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_a_server_with_the_pages_options(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.txt", "alice", Role.CLIENT)
    commands = (
        *documented("prismoe serve --api-keys-file keys.txt"),
        *documented("prismoe serve --allowed-media-domains"),
        *documented("""prismoe serve MODEL --routing '{"policy": "ltdr","""),
    )

    def refusal(url: str) -> str:
        body = {"model": "prismoji", "messages": user(url_part(url))}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400
        return str(answer.json()["error"]["message"])

    with (
        served(tmp_path, bundled_checkpoint(), *commands) as server,
        httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http,
    ):
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        layers = http.get("/v1/routing").raise_for_status().json()["layers"]
        assert [layer["policy"]["tail_experts"] for layer in layers] == [4, 3]
        not_allowed = "its server is not one that --allowed-media-domains allows"
        assert not_allowed in refusal("https://other.example.com/a.png")
        assert not_allowed in refusal("http://images.example.com/a.png")
        assert not_allowed not in refusal("https://images.example.com/a.png"), "No server has this name."


def test_the_pages_commands_switch_and_change_thresholds(tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.txt", "carol", Role.ADMIN)
    [serve] = documented("""prismoe serve MODEL --routing '{"policy": "dual_threshold",""")
    to_native, thresholds = documented("curl -X")
    model = make_checkpoint("qwen3-vl-moe", tmp_path)

    def ask(command: str) -> Any:
        here = command.replace("localhost:8000", server.url).replace("Bearer KEY", f"Bearer {key}")
        return json.loads(shell(here, tmp_path))

    with served(tmp_path, model, serve, "prismoe serve --max-model-len 512") as server:
        assert ask(to_native) == {"routing": "native"}
        layers = ask(thresholds)["layers"]
    assert {layer["policy"]["policy"] for layer in layers} == {"dual_threshold"}
    assert [layer["policy"]["vision_threshold"] for layer in layers] == [0.2, 0.2, 0.4]
