"""Two hosts behind vLLM's router, one of which is killed. A missing permission gives a message."""

import json
import subprocess
import sys

import pytest

from prismoe.loadtests.two_hosts import REQUESTS

pytestmark = [pytest.mark.server, pytest.mark.network_namespaces]


def test_no_request_is_lost() -> None:
    command = [sys.executable, "-m", "prismoe.loadtests.two_hosts"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["answered"] == REQUESTS
