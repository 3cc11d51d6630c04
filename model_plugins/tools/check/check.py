"""`prismoe check`: reports a checkpoint, its routing, whether it loads, and its distance to a reference."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.tools.captured_output import captured_output


def check(
    model: str, against: Path | None, routing: Mapping[str, Any] | None, as_json: bool, verbose: bool
) -> int:
    """Print the report. Returns 1 where an array is beyond the reference's tolerance, else 0.

    Raises ValueError or OSError where the checkpoint can't be loaded or compared.
    """
    folder = checkpoint_folder(model)
    with captured_output(verbose) as log:
        try:
            report = _report(folder, against, routing)
        except RuntimeError as error:
            raise ValueError(f"The checkpoint does not load. {log.cause(error)}") from error
    print(json.dumps(report.as_json(), indent=2) if as_json else report.as_text())
    return 0 if report.passed else 1


def _report(folder: Path, against: Path | None, routing: Mapping[str, Any] | None) -> Any:
    from prismoe.model_plugins.models.moe_llava.config import check_config_file
    from prismoe.model_plugins.tools.check.comparison import compare
    from prismoe.model_plugins.tools.check.engine import check_engine
    from prismoe.model_plugins.tools.check.reference import read_reference
    from prismoe.model_plugins.tools.check.report import CheckReport
    from prismoe.model_plugins.tools.checkpoint_facts import checkpoint_facts

    check_config_file(folder)
    facts = checkpoint_facts(folder)
    reference = read_reference(against, facts) if against else None
    if reference is None and facts.tokenizer is None:
        raise ValueError(
            f"{folder} has no tokenizer that can be loaded, so it can't be served: add its files."
        )
    cases = reference.cases if reference else []
    with check_engine(facts, "float32" if reference else "auto", routing, cases) as engine:
        runs = engine.run(cases)
        return CheckReport(
            facts,
            engine.routing(),
            engine.unused_tensors(),
            reference,
            [
                comparison
                for case, run in zip(cases, runs, strict=True)
                for comparison in compare(case, run, facts.experts.by_layer)
            ],
        )
