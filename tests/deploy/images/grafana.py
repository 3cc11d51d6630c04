"""Replaces Grafana in the tests of compose.yaml: reads Grafana's files, and answers on its port."""

import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

SETTINGS = ("GF_SECURITY_ADMIN_PASSWORD__FILE", "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH")
PROVISIONED = ("dashboards/prismoe.yaml", "datasources/prometheus.yaml")


class Health(BaseHTTPRequestHandler):
    """Answers every GET request."""

    def do_GET(self) -> None:
        """Answer 200."""
        self.send_response(200)
        self.end_headers()

    do_HEAD = do_GET


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
files = [Path(os.environ[name]) for name in SETTINGS]
files += [Path("/etc/grafana/provisioning") / name for name in PROVISIONED]
assert all(file.read_text() for file in files)
Path("/var/lib/grafana/grafana.db").touch()
HTTPServer(("", 3000), Health).serve_forever()
