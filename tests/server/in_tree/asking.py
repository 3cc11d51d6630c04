"""Sends the chats of `tests.model_plugins.in_tree` over HTTP."""

import base64
import io
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from prismoe.server.media.connector import RequestMedia
from tests.model_plugins.in_tree.chats import Chat, Video
from tests.model_plugins.in_tree.tiny_model import BYTES
from tests.runners import Runner
from tests.server.conftest import image_part, text_part, user
from tests.server.running import PRISMOE, Server

MODEL = "tiny"
MAX_TOKENS = 6
OPTIONS = ("--served-model-name", MODEL, "--dtype", "float32", "--max-model-len", "1024")
AT_ONCE = ("--mm-processor-cache-gb", "0")
"""No cache of pictures: with one, vLLM can refuse the second of two requests with the same picture."""
FULL = ("--expert-metrics", "full", "--expert-load-interval", "0.2")
READ_S = 0.6
"""The server answers with a reading that is up to half a second old."""

Samples = dict[tuple[str, ...], float]


@dataclass(frozen=True, kw_only=True)
class VideoFile(Video):
    """A video as a file. Its frames are those that the server's loader takes."""

    data: bytes
    loader_metadata: dict[str, Any]

    @classmethod
    def of(cls, data: bytes, processor: str) -> "VideoFile":
        """The video for a model with this video processor."""
        video = RequestMedia().fetch_video(_data_url("video/mp4", data), video_processor=processor)
        frames, loader_metadata = video.media
        return cls(frames, data=data, loader_metadata=dict(loader_metadata))

    def metadata(self) -> dict[str, Any]:
        return {name: value for name, value in self.loader_metadata.items() if name != "do_sample_frames"}


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def body(chat: Chat, **options: Any) -> dict[str, Any]:
    """A request whose tokens are all computed, and whose answer is comparable with transformers'."""
    return {
        "model": MODEL,
        "messages": user(*map(_part, chat.parts)),
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "allowed_token_ids": list(range(BYTES)),
        "return_token_ids": True,
        "cache_salt": str(uuid4()),
        **options,
    }


def _part(part: Any) -> dict[str, object]:
    if isinstance(part, str):
        return text_part(part)
    if isinstance(part, VideoFile):
        return {"type": "video_url", "video_url": {"url": _data_url("video/mp4", part.data)}}
    file = io.BytesIO()
    part.save(file, "PNG")
    return image_part(file.getvalue())


def ask(http: httpx.Client, asked: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The token ids of the prompt and of the answer."""
    answer = http.post("/v1/chat/completions", json=asked)
    assert answer.status_code == 200, answer.text
    if not asked.get("stream"):
        whole = answer.json()
        return whole["prompt_token_ids"], whole["choices"][0]["token_ids"]
    lines = [line for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return chunks[0]["prompt_token_ids"], [
        token for choice in choices for token in choice.get("token_ids") or ()
    ]


def load(http: httpx.Client) -> dict[str, Any]:
    """The current expert load."""
    time.sleep(READ_S)
    expert_load: dict[str, Any] = http.get("/v1/routing/load").raise_for_status().json()
    return expert_load


def since(before: dict[str, Any], now: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The growth of the counts: `[layer, modality]` tokens, and `[layer, modality, expert]` tokens."""
    tokens, experts = (np.array(now[name]) - np.array(before[name]) for name in ("tokens", "expert_tokens"))
    return tokens, experts


def scrape(http: httpx.Client, start: str = "prismoe_") -> Samples:
    """The samples of `/metrics` with this prefix, by name and the values of all labels except the model."""
    samples = {}
    for family in text_string_to_metric_families(http.get("/metrics").raise_for_status().text):
        for sample in family.samples:
            if sample.name.startswith(start):
                labels = [value for name, value in sample.labels.items() if name != "model_name"]
                samples[(sample.name, *labels)] = sample.value
    return samples


def scrape_when_read(http: httpx.Client, expert_load: dict[str, Any]) -> Samples:
    """The samples once they have the tokens of `expert_load`, a load that no request followed."""
    return scrape_until_counted(http, sum(expert_load["tokens"][0]))


def scrape_until_counted(http: httpx.Client, tokens: int) -> Samples:
    """The samples once this many tokens are counted, or after 20 seconds."""
    end = time.monotonic() + 20
    while True:
        samples = scrape(http)
        counted = sum(value for key, value in samples.items() if key[0] == "prismoe_tokens_total")
        if counted == tokens or time.monotonic() > end:
            return samples
        time.sleep(0.1)


def top_once(server: Server, seconds: float = 0.5) -> "subprocess.Popen[str]":
    """The output of `prismoe top --once` in a wide terminal."""
    return subprocess.Popen(
        [*PRISMOE, "top", "--once", "--interval", str(seconds), "--url", server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "160"},
        text=True,
    )


@contextmanager
def served(checkpoint: Path, log: Path, *options: str, runner: Runner = "v1") -> Iterator[Server]:
    """A running server, which ends with the block."""
    server = Server(log, str(checkpoint), *OPTIONS, *AT_ONCE, *options, runner=runner)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def client(server: Server) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=120)


def cells(line: str) -> Sequence[str]:
    """The cells of a row of `prismoe top`."""
    return [cell.strip() for cell in line.split("│")[1:-1]]
