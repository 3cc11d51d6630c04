"""`prismoe evaluate`: asks a model the same questions under several routings, and compares the answers."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.files.weight_files import read_json
from prismoe.model_plugins.routing import NATIVE
from prismoe.model_plugins.tools.captured_output import captured_output
from prismoe.model_plugins.tools.evaluate.questions import BUNDLED, Question, read_questions
from prismoe.model_plugins.tools.settings import EvaluateSettings

if TYPE_CHECKING:
    from vllm import EngineArgs

    from prismoe.model_plugins.tools.evaluate.run import Run


def evaluate(settings: EvaluateSettings) -> int:
    """Print the table, write the JSON file if requested, and return 0.

    Raises ValueError or OSError where the questions or a routing can't be used.
    """
    questions = read_questions(settings.questions or BUNDLED)
    folder = checkpoint_folder(settings.model)
    with captured_output(settings.verbose):
        from prismoe.model_plugins.plugin import register
        from prismoe.model_plugins.tools.chat_engine import engine_arguments
        from prismoe.model_plugins.tools.evaluate.report import as_json, compare, table

        register()
    bundled = {"dtype": "float32"} if folder.resolve() == bundled_checkpoint().resolve() else {}
    arguments = engine_arguments(
        "evaluate", folder, settings.engine_options, settings.run_checkpoint_code, **bundled
    )
    routings = _routings(folder, [setting.routing for setting in settings.routing] or [None])
    runs = [_run(settings, arguments, routing, questions) for routing in routings]
    rows = compare(questions, runs)
    print(table(questions, rows))
    if settings.json_file is not None:
        written = as_json(settings.model, questions, settings.max_tokens, rows)
        settings.json_file.write_text(written + "\n", encoding="utf-8")
    return 0


def _routings(folder: Path, requested: list[dict[str, Any] | None]) -> list[Mapping[str, Any] | None]:
    """The engines' routings. For a MoE-LLaVA checkpoint, `native` is its own routing, None.

    Raises ValueError for a routing that the model can't have, as far as this is known before an engine
    starts.
    """
    file = folder / "config.json"
    if not file.is_file():
        return [*requested]  # a checkpoint in Mistral's own format
    from transformers import AutoConfig

    from prismoe.model_plugins.models.moe_llava.config import (
        check_config_file,
        is_moe_llava,
        routing_in_force,
    )
    from prismoe.model_plugins.routing.any_gate import OperatorPolicies

    if not is_moe_llava(read_json(file)):
        for routing in requested:
            if routing is not None and routing != NATIVE:
                OperatorPolicies.of(routing)
        return [*requested]
    check_config_file(folder)
    config = AutoConfig.from_pretrained(folder)
    routings = [None if routing == NATIVE else routing for routing in requested]
    for routing in routings:
        routing_in_force(config, routing)
    return [*routings]


def _run(
    settings: EvaluateSettings,
    arguments: "EngineArgs",
    routing: Mapping[str, Any] | None,
    questions: list[Question],
) -> "Run":
    with os.fdopen(os.dup(2), "w") as terminal, captured_output(settings.verbose) as log:
        from prismoe.model_plugins.tools.evaluate.engine import ask

        try:
            return ask(arguments, routing, questions, settings.max_tokens, terminal)
        except RuntimeError as error:
            raise ValueError(f"The model can't answer. {log.cause(error)}") from error
