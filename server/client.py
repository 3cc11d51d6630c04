"""The little of an HTTP client that the commands need, from the standard library."""

import base64
import json
import urllib.request
from pathlib import Path
from typing import Any


class Client:
    """Asks one server."""

    def __init__(self, url: str) -> None:
        self.url = url

    def healthy(self) -> bool:
        """Whether the server answers."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return True
        except OSError:
            return False

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """The text at `path`."""
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return str(response.read().decode())

    def model(self) -> str:
        """The name of the model that is served."""
        return str(self.get("/v1/models")["data"][0]["id"])

    def ask(self, model: str, picture: Path, question: str) -> str:
        """The model's answer to a question about a PNG picture."""
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
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.load(response)["choices"][0]["message"]["content"]).strip()
