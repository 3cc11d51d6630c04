"""Runs one check in the process that `run` starts for it: `… one MODULE NAME FILE gpu|dry`."""

import sys
import traceback
from importlib import import_module
from pathlib import Path

from prismoe.benchmarks.gpu_check.check import Check, Host, Result, Skip


def result(check: Check, host: Host) -> Result:
    """Run the check, and return how it ended. A traceback goes to stderr."""
    if check.needs_gpu and host.is_dry:
        return Result(outcome="skipped", why="needs a GPU")
    try:
        return Result(outcome="ok", figures=check.run(host))
    except Skip as skip:
        return Result(outcome="skipped", why=str(skip))
    except Exception as error:
        traceback.print_exc()
        lines = str(error).strip().splitlines() or ["no message"]
        return Result(outcome="failed", why=f"{type(error).__name__}: {lines[0]}")


def main() -> None:
    """Run the check, and write the result to the file."""
    module, name, file, where = sys.argv[1:]
    [check] = [each for each in import_module(module).CHECKS if each.name == name]
    Path(file).write_text(result(check, Host(where == "dry")).model_dump_json())


if __name__ == "__main__":
    main()
