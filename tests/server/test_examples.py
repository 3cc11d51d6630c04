"""The examples that use a running server, and the README's question to one."""

import json
import os
import subprocess
import sys
from typing import Any

import httpx
import numpy as np
import pytest

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.doc_commands import documented, shell
from tests.examples import EXAMPLES, code_of_notebook, run_notebook
from tests.paths import REPOSITORY
from tests.server.app.test_counts import load
from tests.server.running import Server

MAPLE_LEAF = bundled_checkpoint() / "pictures" / "maple-leaf.png"


def run(server: Server, example: str, *arguments: str) -> str:
    """Run an example, and return its output."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / example, *arguments],
        env={**os.environ, "OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readmes_question_is_answered(server: Server) -> None:
    [picture], [ask] = documented("PICTURE="), documented("printf")
    answer = shell(f"{picture}\n{ask}".replace("http://127.0.0.1:8000", server.url), REPOSITORY)
    assert json.loads(answer)["choices"][0]["message"]["content"] == "maple leaf"


def test_openais_client_asks_about_a_picture(server: Server) -> None:
    assert run(server, "openai_client.py", str(MAPLE_LEAF), "What is this?") == "maple leaf\n"


def test_the_load_becomes_a_table_by_layer_expert_and_modality(server: Server, http: httpx.Client) -> None:
    pytest.importorskip("pandas")
    run(server, "openai_client.py", str(MAPLE_LEAF), "What is this?")
    reported = load(http)
    table = run(server, "load_to_pandas.py").splitlines()
    assert table[0].split() == ["modality", "image", "text"]
    numbers = [[int(number) for number in row.split()[-2:]] for row in table[2:]]
    place_of = {modality: place for place, modality in enumerate(reported["modalities"])}
    assert numbers == [
        [counts[place_of["image"]][expert], counts[place_of["text"]][expert]]
        for counts in reported["expert_tokens"]
        for expert in range(4)
    ]
    assert np.array(numbers).sum() > 0


def test_the_figure_of_a_served_model_has_the_servers_counts(
    server: Server, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.url}/v1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = load(http)
    notebook = run_notebook(code_of_notebook())
    after = load(http)

    def counted(name: str) -> Any:
        return np.array(after[name], dtype=float) - np.array(before[name], dtype=float)

    assert list(notebook["layers"]) == after["layers"]
    for place, (modality_T, rpv_T, uses) in enumerate(notebook["layers"].values()):
        for index, modality in enumerate(after["modalities"]):
            assert (modality_T == modality).sum() == counted("tokens")[place][index] > 0
            assert uses[modality].tolist() == counted("expert_tokens")[place][index].tolist()
            rpv = rpv_T[modality_T == modality].sum()
            np.testing.assert_allclose(rpv, counted("routing_variance")[place][index], rtol=1e-3)
    # A histogram for each layer; a map and its scale for each modality.
    assert len(notebook["drawn"].axes) == 2 + 2 * 2
