"""Asks a running server the demo's questions: python -m tests.deploy.ask URL KEY METRICS_KEY."""

import json
import sys

import httpx
from openai import OpenAI

from prismoe.model_plugins.bundled import bundled_checkpoint
from prismoe.server.demo import PICTURES, QUESTIONS
from tests.server.conftest import image_part, user


def main(url: str, key: str, metrics_key: str) -> None:
    """Print each answer. Fails where most are wrong, or where the server answers without the key."""
    assert httpx.get(f"{url}/readyz").status_code == 200
    assert httpx.get(f"{url}/v1/models").status_code == 401, "The API key guards nothing."
    folder = bundled_checkpoint() / "pictures"
    listed = json.loads((folder / "pictures.json").read_text())
    client = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    model = client.models.list().data[0].id
    answers = []
    for picture in listed[:: max(1, len(listed) // PICTURES)][:PICTURES]:
        for question, right in zip(QUESTIONS, (picture["name"], picture["category"]), strict=True):
            messages = user(image_part((folder / picture["file"]).read_bytes()), question)
            answer = client.chat.completions.create(
                model=model, messages=messages, max_tokens=32, temperature=0
            )
            text = (answer.choices[0].message.content or "").strip()
            print(f"{picture['file']}: {question} {text} (drawn as: {right})", flush=True)
            answers.append(text.lower() == right.lower())
    assert sum(answers) > len(answers) / 2, "Most answers are wrong."
    metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {metrics_key}"}).text
    assert 'prismoe_tokens_total{modality="vision"' in metrics


if __name__ == "__main__":
    main(*sys.argv[1:])
