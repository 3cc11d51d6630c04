"""Ask a running server about a picture, with OpenAI's own client (`pip install openai`).

    prismoe serve                                              # in another terminal
    python openai_client.py maple-leaf.png "What is this?"

OPENAI_BASE_URL is the server's URL, and OPENAI_API_KEY your key, if the server needs one.
"""

import base64
import mimetypes
import os
import sys
from pathlib import Path

from openai import OpenAI

picture, question = Path(sys.argv[1]), sys.argv[2]
client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
kind, _ = mimetypes.guess_type(picture)
data = base64.b64encode(picture.read_bytes()).decode()
answer = client.chat.completions.create(
    model=client.models.list().data[0].id,
    messages=[
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
                {"type": "text", "text": question},
            ],
        }
    ],
    temperature=0,
    max_tokens=16,
)
print(answer.choices[0].message.content)
