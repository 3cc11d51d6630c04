"""Routes, and the bodies of requests to them."""

from typing import Any

from prismoe.server.requests.models import Served

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
INSPECT = "/v1/routing/inspect"
TOKENIZE = "/tokenize"
DETOKENIZE = "/detokenize"
COMPLETIONS = "/v1/completions"
MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
RESPONSES = "/v1/responses"

URL = "data:image/png;base64,AAAA"
TEXT = {"type": "text", "text": "Hi"}
IMAGE = {"type": "image_url", "image_url": {"url": URL}}
VIDEO = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
INPUT_IMAGE = {"type": "input_image", "image_url": URL}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

ROLES = "The roles are: system, developer, user, assistant, tool."
ALL = Served(
    frozenset({"image", "video"}), template_has_tools=True, reads_forced_calls=True, reads_calls=True
)
PARTS = "The parts are: text, refusal, image_url, video_url."
LEFT_OUT = "leave it out of the request."


def user(*content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}]}


def items(*items: Any) -> dict[str, Any]:
    return {"input": list(items)}
