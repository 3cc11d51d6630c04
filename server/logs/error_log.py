"""A filter of the log during requests: it keeps only the server's faults, and each of them once.

vLLM logs the client's errors like the server's, with tracebacks and with the client's text. `RequestLog`
writes a line for each request. Besides that line the log has only faults of the server, each with its class
and traceback. An error's message is left out, because it may quote the request.
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

OWN_LOGGERS = "vllm.prismoe"
"""The beginning of the names of prismoe's loggers. These quote no client."""


@dataclass
class _Request:
    id: str
    last_fault: tuple[BaseException, logging.LogRecord] | None = None
    """The fault that was logged last, and its record."""


_request: ContextVar[_Request] = ContextVar("prismoe_request")


def log_faults_alone(renderer: BaseRenderer) -> None:
    """Filter what this process logs during requests from now on, and hide warnings during requests.

    The filter is added to all present handlers, and to uvicorn's logger, which gets its handlers later. The
    threads of `renderer`, in which vLLM prepares a request's text and images, inherit the request's context.
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
    """Note that this task, and the tasks that it starts, work for a request from now on."""
    _request.set(_Request(request_id))


def may_be_written(record: logging.LogRecord) -> bool:
    """Return whether a handler writes this record. The record of a fault is rewritten without its message."""
    request = _request.get(None)
    if request is None or record.levelno < logging.WARNING or record.name.startswith(OWN_LOGGERS):
        return True
    error = record.exc_info[1] if record.exc_info else sys.exc_info()[1]
    if error is None or not _is_fault(error):
        return False
    if request.last_fault is None or request.last_fault[0] is not error:
        request.last_fault = error, record
        record.msg, record.args = "A fault of the server, request_id=%s\n%s", (request.id, _described(error))
        record.exc_info = record.exc_text = None
    return request.last_fault[1] is record


def _is_fault(error: BaseException) -> bool:
    """Return whether vLLM answers this error with status 500."""
    match error:
        case HTTPException():
            return error.status_code == HTTPStatus.INTERNAL_SERVER_ERROR
        case RequestValidationError():
            return False
        case Exception():
            return create_error_response(error).error.code == HTTPStatus.INTERNAL_SERVER_ERROR
    return True


def _described(error: BaseException) -> str:
    """Return the classes and tracebacks of the error and of its causes, the first cause first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.insert(0, cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\n\nThat led to another error.\n\n".join(map(_traceback, chain))


def _traceback(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(error.__traceback__))
    return f"Traceback (most recent call last):\n{frames}{type(error).__qualname__}"
