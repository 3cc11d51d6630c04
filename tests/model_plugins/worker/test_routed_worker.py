"""prismoe's worker, where an engine on CPU doesn't show what it does."""

from typing import Any
from unittest.mock import Mock

import pytest

from prismoe.model_plugins.worker.routed_worker import RoutedWorker


def test_what_is_counted_while_warming_up_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA the V2 runner warms up with requests that look like real ones."""
    worker: Any = object.__new__(RoutedWorker)
    worker.routing = Mock(name="routing")
    happened = Mock()
    happened.attach_mock(worker.routing, "routing")
    vllms = RoutedWorker.__bases__[-1]
    monkeypatch.setattr(vllms, "compile_or_warm_up_model", lambda self: happened.warm_up())
    assert worker.compile_or_warm_up_model() is happened.warm_up.return_value
    assert [name for name, _, _ in happened.mock_calls] == ["warm_up", "routing.reset_load"]
