"""Starts a server on the bundled model and runs each client with it: `make clients`.

python -m tests.server.clients ENVIRONMENT, the folder of a virtual environment with the clients of
`python_clients` and the npm packages of `node_clients`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from tests.server.running import Server

HERE = Path(__file__).parent


def main(environment: Path) -> int:
    """Run all clients, and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "log")
        try:
            server.wait_until_ready()
            reported = {
                "PRISMOE_URL": server.url,
                "PRISMOE_PICTURE": str(bundled_checkpoint() / "pictures" / "maple-leaf.png"),
                "PRISMOE_PACKAGES": str(environment),
            }
            pytest = ["-m", "pytest", "-q", "-c", os.devnull, "--noconftest", "-p", "no:cacheprovider"]
            commands = [
                [str(environment / "bin" / "python"), *pytest, str(HERE / "python_clients.py")],
                ["node", "--test", str(HERE / "node_clients.mjs")],
            ]
            return max(subprocess.run(command, env=os.environ | reported).returncode for command in commands)
        finally:
            server.stop()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
