"""Read a running server's expert load into a pandas DataFrame (`pip install pandas`), and print it.

    prismoe serve                                              # in another terminal
    python load_to_pandas.py

OPENAI_BASE_URL is the server's URL, and OPENAI_API_KEY your key, if the server needs one.
"""

import json
import os
from typing import Any
from urllib.request import Request, urlopen

import pandas as pd


def expert_load() -> dict[str, Any]:
    """The server's counts since its start, over all requests: each token once in each layer."""
    server = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1")
    key = os.environ.get("OPENAI_API_KEY", "none")
    request = Request(f"{server}/routing/load", headers={"Authorization": f"Bearer {key}"})
    with urlopen(request) as answer:
        load: dict[str, Any] = json.load(answer)
    return load


def records(load: dict[str, Any]) -> list[dict[str, Any]]:
    """One record for each MoE layer, expert and modality, with the number of tokens."""
    return [
        {"layer": layer, "expert": expert, "modality": modality, "tokens": tokens}
        for layer, by_modality in zip(load["layers"], load["expert_tokens"], strict=True)
        for modality, by_expert in zip(load["modalities"], by_modality, strict=True)
        for expert, tokens in enumerate(by_expert)
    ]


if __name__ == "__main__":
    table = pd.DataFrame(records(expert_load()))
    print(table.pivot(index=["layer", "expert"], columns="modality", values="tokens"))
