"""Adds exception handlers to vLLM's app."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from vllm.entrypoints.launchers import app as launchers_app

from prismoe.model_plugins.vllm_seams.check import Needed

NEEDS = [Needed("vllm.entrypoints.launchers.app:init_exception_handler", ("app",))]


@contextmanager
def with_handlers(add: Callable[[FastAPI], None]) -> Iterator[None]:
    """Add what `add` adds to an app that vLLM builds within the block.

    vLLM also builds the app's stack, which accepts no handlers later; a second stack would count no requests.
    """
    vllm: Any = launchers_app
    add_vllms = vllm.init_exception_handler

    def add_all(app: FastAPI) -> None:
        add_vllms(app)
        add(app)

    vllm.init_exception_handler = add_all
    try:
        yield
    finally:
        vllm.init_exception_handler = add_vllms
