"""Keeps the output of vLLM and its processes out of a tool's report."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ERROR_LINE = re.compile(r"(?:^|\s|\])((?:ValueError|OSError|FileNotFoundError|RuntimeError|KeyError): .+)$")


class Log:
    """The output of a `captured_output` block."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def cause(self, error: RuntimeError) -> str:
        """The message of the first printed error, which is the cause of later ones, or else of `error`."""
        if self._file is None:
            return str(error)
        lines = self._file.read_text(errors="replace").splitlines()
        errors = [match[1].partition(": ")[2] for line in lines if (match := ERROR_LINE.search(line))]
        return errors[0] if errors else f"{error} Run the command with --verbose to see vLLM's log."


@contextmanager
def captured_output(verbose: bool) -> Iterator[Log]:
    """Send the output of this process and its children to a file, or to stderr when `verbose`.

    It redirects file descriptors, since C libraries and the engine's processes print, too.
    """
    if not verbose:
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.NamedTemporaryFile(prefix="prismoe-", suffix=".log") as file:
        _flush()
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        try:
            os.dup2(2 if verbose else file.fileno(), 1)
            if not verbose:
                os.dup2(file.fileno(), 2)
            yield Log(None if verbose else Path(file.name))
        finally:
            _flush()
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
