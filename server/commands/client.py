"""A small HTTP client for the commands, made with the standard library."""

import base64
import json
import os
import urllib.request
from pathlib import Path
from typing import Any


class Client:
    """A client of one server. It sends the key in the environment variable PRISMOE_API_KEY, if any."""

    def __init__(self, url: str) -> None:
        self.url = url
        key = os.environ.get("PRISMOE_API_KEY")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def healthy(self) -> bool:
        """Return whether the server is ready for requests."""
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                return True
        except OSError:
            return False

    def get(self, path: str) -> Any:
        """Return the JSON at `path`."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """Return the text at `path`."""
        request = urllib.request.Request(self.url + path, headers=self._headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())

    def model(self) -> str:
        """Return the name of the served model."""
        return str(self.get("/v1/models")["data"][0]["id"])

    def ask(self, model: str, picture: Path, question: str) -> str:
        """Return the model's answer to a question about a PNG picture."""
        url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        body = json.dumps(
            {
                "model": model,
                "temperature": 0,
                "max_tokens": 32,
                "messages": [{"role": "user", "content": content}],
            }
        )
        headers = {"Content-Type": "application/json"} | self._headers
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", body.encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.load(response)["choices"][0]["message"]["content"]).strip()
