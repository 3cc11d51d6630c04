"""`prismoe calibrate`: record a checkpoint's routers, fit a policy to them, write a checkpoint with it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.tools.captured_output import captured_output
from prismoe.model_plugins.tools.convert.convert import written_whole
from prismoe.model_plugins.tools.settings import CalibrateSettings

if TYPE_CHECKING:
    from prismoe.model_plugins.routing.registry import RoutingInForce
    from prismoe.model_plugins.tools.calibrate.router_recording import CalibrationData

SHARD_BYTES = 4 * 10**9


def calibrate(settings: CalibrateSettings) -> int:
    """Print what the fit changes, write the checkpoint and return 0.

    Raises ValueError or OSError with a sentence where that can't be done; nothing is left behind then.
    """
    model = checkpoint_folder(settings.model)
    own_settings = {name: value for name, value in (settings.routing or {}).items() if name != "policy"}
    with captured_output(settings.verbose):
        from transformers import AutoConfig

        from prismoe.model_plugins.models.moe_llava.config import check_config_file, routing_in_force
        from prismoe.model_plugins.plugin import register
        from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, fitter
        from prismoe.model_plugins.tools.calibrate.report import report
        from prismoe.model_plugins.tools.convert.self_contained import write_self_contained

        register()
    check_config_file(model)
    fit = fitter(settings.policy, own_settings)
    config = AutoConfig.from_pretrained(model)
    goal = Goal(own_settings, **settings.goal)
    before = routing_in_force(config, None)
    wanted = routing_in_force(config, {"policy": settings.policy, **own_settings})  # Refuses nonsense.
    if fit.needs_divergence and goal.searches:
        _check_slots(before, wanted)
    with written_whole(settings.destination) as folder:
        with _recorded(model, settings, fit.needs_divergence) as data:
            fitted = fit.fit(data, goal)
        after = routing_in_force(config, fitted.routing())
        print(report(data, before, after, fitted.tensors))
        write_self_contained(model, folder, fitted.routing(), None, SHARD_BYTES, fitted.tensors)
    print(f"Wrote {settings.destination}. To serve it: prismoe serve {settings.destination}")
    return 0


def _check_slots(before: "RoutingInForce", wanted: "RoutingInForce") -> None:
    """Raise ValueError where the policy, which is tried in the model as it is, has no room there."""
    for layer, routing in before.layers.items():
        room = routing.policy.slots(routing.num_experts)
        if wanted.layers[layer].policy.slots(routing.num_experts) > room:
            raise ValueError(
                "The search tries the policy in the place of the checkpoint's own, which gives a token "
                f"at most {room} experts in layer {layer}: give a smaller top_k, or --skip for a fit "
                "without a search."
            )


@contextmanager
def _recorded(model: Path, settings: CalibrateSettings, with_divergence: bool) -> "Iterator[CalibrationData]":
    with os.fdopen(os.dup(2), "w") as terminal, captured_output(settings.verbose) as log:
        from prismoe.model_plugins.tools.calibrate.engine import recorded_routers
        from prismoe.model_plugins.tools.calibrate.prompts import (
            calibration_prompts,
            pictures,
            read_questions,
        )
        from prismoe.model_plugins.tools.checkpoint_facts import checkpoint_facts

        facts = checkpoint_facts(model)
        if facts.tokenizer is None:
            raise ValueError(
                f"{model} has no tokenizer that can be loaded, so it can't be asked: add its files."
            )
        images = pictures(settings.images, settings.max_images)
        prompts = calibration_prompts(str(model), images, read_questions(settings.questions))
        try:
            with recorded_routers(facts, prompts, with_divergence, terminal) as data:
                yield data
        except RuntimeError as error:
            raise ValueError(f"The checkpoint does not load. {log.first_error() or error}") from error
