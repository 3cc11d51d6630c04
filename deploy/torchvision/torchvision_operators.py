"""Lets PyPI's torchvision import beside CPU torch.

Its C++ operators are linked with CUDA and don't load there; torchvision then fails where it describes the
shapes of two of them. They are declared here just before. Calling one still raises an error, and vLLM's
processors call neither. Where the operators load, as in a matching CPU build, this does nothing.

torchvision_operators.pth runs it at the start of each Python process, before torch is imported.
"""

import sys
from collections.abc import Sequence
from types import ModuleType

SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class OperatorsFirst:
    """Finds no module: it is asked before torchvision's `_meta_registrations` is loaded, and acts then."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if name != "torchvision._meta_registrations" or sys.modules["torchvision.extension"]._has_ops():
            return
        import torch

        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", SCHEMA)


sys.meta_path.insert(0, OperatorsFirst)
