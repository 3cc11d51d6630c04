"""What the log says of errors in a request: nothing of the client's errors, each of the server's once.

vLLM logs both alike, with tracebacks and with what the client wrote. `RequestLog` writes a line for each
request; beside it only a fault of the server is logged, by its class and its traceback. Its message is left
out, as it may quote the request.
"""

import logging
import sys
import traceback
import warnings
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.renderers import BaseRenderer

from prismoe.model_plugins.vllm_seams.front.threads import keep_context

OWN = "vllm.prismoe"
"""Where the loggers of prismoe begin, which quote no client."""


@dataclass
class _Request:
    id: str
    told: tuple[BaseException, logging.LogRecord] | None = None
    """The fault that was told last, and where."""


_request: ContextVar[_Request] = ContextVar("prismoe_request")


def log_faults_alone(renderer: BaseRenderer) -> None:
    """Bound what is logged in requests, from now on and in this process.

    This filters the handlers that there are now, and uvicorn's logger, whose handlers come later. The threads
    of `renderer`, in which vLLM prepares a request's text and images, learn which request they work for.
    """
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {each for logger in loggers for each in getattr(logger, "handlers", ())} | {logging.lastResort}
    for filtered in (*handlers, logging.getLogger("uvicorn.error")):
        if filtered is not None:
            filtered.addFilter(may_be_written)
    show_warning = warnings.showwarning
    warnings.showwarning = lambda *warning: None if _request.get(None) else show_warning(*warning)
    keep_context(renderer)


def begin_request(request_id: str) -> None:
    """From here on this task, and what it starts, work for a request."""
    _request.set(_Request(request_id))


def may_be_written(record: logging.LogRecord) -> bool:
    """Whether a handler writes this record; that of a fault is rewritten."""
    request = _request.get(None)
    if request is None or record.levelno < logging.WARNING or record.name.startswith(OWN):
        return True
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    if error is None or not _is_fault(error):
        return False
    if request.told is None or request.told[0] is not error:
        request.told = error, record
        record.msg, record.args = "A fault of the server, request_id=%s\n%s", (request.id, _described(error))
        record.exc_info = record.exc_text = None
    return request.told[1] is record


def _is_fault(error: BaseException) -> bool:
    """Whether vLLM answers the error with status 500."""
    match error:
        case HTTPException():
            return error.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
        case RequestValidationError():
            return False
        case Exception():
            return create_error_response(error).error.code == HTTPStatus.INTERNAL_SERVER_ERROR
    return True


def _described(error: BaseException) -> str:
    """The error's class and where it was raised, after those of the errors that it came from."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.insert(0, cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n\nThat led to another error.\n\n".join(map(_traceback, chain))


def _traceback(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}"
