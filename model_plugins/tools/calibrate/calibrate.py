"""`prismoe calibrate`: record a model's routers, fit a policy to them, write what serves it.

For a MoE-LLaVA that is a checkpoint with the policy in it, for a model of vLLM's own a file for `--routing`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from prismoe.model_plugins.files.hub import checkpoint_folder
from prismoe.model_plugins.files.weight_files import read_json, weights_digest
from prismoe.model_plugins.tools.captured_output import captured_output
from prismoe.model_plugins.tools.convert.convert import written_whole
from prismoe.model_plugins.tools.settings import CalibrateSettings

if TYPE_CHECKING:
    from vllm import EngineArgs

    from prismoe.model_plugins.routing.calibrated import Measured
    from prismoe.model_plugins.tools.calibrate.engine import CalibrationEngine
    from prismoe.model_plugins.tools.calibrate.fits.data import CalibrationData
    from prismoe.model_plugins.tools.calibrate.fits.fit import Fitter, Goal
    from prismoe.model_plugins.tools.calibrate.recording import Prompts
    from prismoe.model_plugins.tools.calibrate.state import State

SHARD_BYTES = 4 * 10**9


@dataclass(frozen=True)
class Calibration:
    """What is to be fitted to which checkpoint."""

    settings: CalibrateSettings
    folder: Path
    fit: "Fitter"
    goal: "Goal"
    prompts: "Prompts"
    arguments: "EngineArgs"
    is_ours: bool
    """Whether it is a MoE-LLaVA."""

    @property
    def own_settings(self) -> Mapping[str, Any]:
        """Those of the policy that stay as they are."""
        return self.goal.settings

    @property
    def asked(self) -> str:
        """Tells what is recorded from what another calibration does."""
        parts = [
            weights_digest(self.folder),
            self.settings.policy,
            self.own_settings,
            self.prompts.pictures.digest,
            len(self.prompts),
            [*self.prompts.questions],
        ]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def calibrate(settings: CalibrateSettings) -> int:
    """Print what the fit changes, write the destination and return 0.

    Raises ValueError or OSError with a sentence where that can't be done; what was recorded until then is
    left beside the destination.
    """
    calibration = prepared(settings)
    return _into_checkpoint(calibration) if calibration.is_ours else _into_file(calibration)


def prepared(settings: CalibrateSettings) -> Calibration:
    """What these settings ask for. Raises ValueError or OSError with a sentence where that can't be done."""
    folder = checkpoint_folder(settings.model)
    own_settings = {name: value for name, value in (settings.routing or {}).items() if name != "policy"}
    with captured_output(settings.verbose):
        from prismoe.model_plugins.models.moe_llava.config import is_moe_llava
        from prismoe.model_plugins.plugin import register
        from prismoe.model_plugins.tools.calibrate.fits.fit import Goal, fitter
        from prismoe.model_plugins.tools.calibrate.prompts import pictures, read_questions
        from prismoe.model_plugins.tools.calibrate.recording import Prompts
        from prismoe.model_plugins.tools.chat_engine import engine_arguments

        register()
    fit = fitter(settings.policy, own_settings)
    is_ours = is_moe_llava(read_json(folder / "config.json")) if (folder / "config.json").is_file() else False
    goal = Goal(own_settings, **settings.goal)
    if is_ours:
        _check_moe_llava(
            folder, {"policy": settings.policy, **own_settings}, fit.needs_divergence and goal.searches
        )
    else:
        _check_any_gate(settings, fit, own_settings)
    prompts = Prompts(pictures(settings.images, settings.max_images), read_questions(settings.questions))
    arguments = engine_arguments(
        "calibrate",
        folder,
        settings.engine_options,
        settings.run_checkpoint_code,
        mm_processor_cache_gb=0,
    )
    arguments.enforce_eager = True  # a compiled engine can't be watched
    return Calibration(settings, folder, fit, goal, prompts, arguments, is_ours)


def _check_moe_llava(folder: Path, routing: Mapping[str, Any], searches: bool) -> None:
    """Raise ValueError with a sentence where the checkpoint or the policy's settings make no sense.

    `searches`: whether the fit tries the policy in the place of the checkpoint's own.
    """
    from transformers import AutoConfig

    from prismoe.model_plugins.models.moe_llava.config import check_config_file, routing_in_force

    check_config_file(folder)
    config = AutoConfig.from_pretrained(folder)
    wanted = routing_in_force(config, routing)
    for layer, routed in routing_in_force(config, None).layers.items():
        room = routed.policy.slots(routed.num_experts)
        if searches and wanted.layers[layer].policy.slots(routed.num_experts) > room:
            raise ValueError(
                "The search tries the policy in the place of the checkpoint's own, which gives a token "
                f"at most {room} experts in layer {layer}: give a smaller top_k, or --skip for a fit "
                "without a search."
            )
        if routed.policy.gate_rows(routed.num_experts) != routed.num_experts:
            raise ValueError(
                f"Layer {layer} of {folder} routes without a logit for each expert, and "
                "calibration starts from those: calibrate the checkpoint that it was made from."
            )


def _check_any_gate(settings: CalibrateSettings, fit: "Fitter", own_settings: Mapping[str, Any]) -> None:
    """The same of a model of vLLM's own, and of what can be written for it."""
    from prismoe.model_plugins.routing.any_gate import OperatorPolicies

    if fit.measure is None:
        raise ValueError(
            f"What is fitted of {settings.policy} are tensors, which go into a MoE-LLaVA's checkpoint: for "
            "this model give ltdr, dual_threshold or entropy."
        )
    OperatorPolicies.of({"policy": settings.policy, **own_settings, **fit.neutral})
    if settings.destination.exists():
        raise ValueError(f"{settings.destination} exists: name a file that is not there yet.")
    if not settings.destination.parent.is_dir():
        raise ValueError(f"There is no folder {settings.destination.parent}.")


def _into_checkpoint(calibration: Calibration) -> int:
    from transformers import AutoConfig

    from prismoe.model_plugins.models.moe_llava.config import routing_in_force
    from prismoe.model_plugins.tools.calibrate.report import report
    from prismoe.model_plugins.tools.calibrate.state import file_beside
    from prismoe.model_plugins.tools.convert.self_contained import write_self_contained

    settings, config = calibration.settings, AutoConfig.from_pretrained(calibration.folder)
    with written_whole(settings.destination) as folder:
        with recorded_checkpoint(calibration) as (engine, data):
            fitted = calibration.fit.fit(data, calibration.goal)
            memory = engine.memory_over_serving()
        before, after = routing_in_force(config, None), routing_in_force(config, fitted.routing())
        print(report(data, before, after, fitted.tensors))
        print(memory)
        write_self_contained(calibration.folder, folder, fitted.routing(), None, SHARD_BYTES, fitted.tensors)
    file_beside(settings.destination).unlink()
    print(f"Wrote {settings.destination}. To serve it: prismoe serve {settings.destination}")
    return 0


@contextmanager
def recorded_checkpoint(
    calibration: Calibration,
) -> Iterator[tuple["CalibrationEngine", "CalibrationData"]]:
    """A MoE-LLaVA's engine, which runs until the block ends, and what its routers did."""
    from transformers import AutoConfig

    from prismoe.model_plugins.models.moe_llava.config import routing_in_force

    config = AutoConfig.from_pretrained(calibration.folder)
    own = routing_in_force(config, {"policy": calibration.settings.policy, **calibration.own_settings})
    policies = {layer: routed.policy.model_dump() for layer, routed in own.layers.items()}
    with _engine(calibration, None) as (engine, terminal):
        told = engine.call("prismoe_routing")
        state = _recorded(calibration, engine, told, policies, terminal)
        yield engine, _data(calibration, engine, told, state, terminal)


def _into_file(calibration: Calibration) -> int:
    from prismoe.model_plugins.routing.calibrated import CALIBRATED
    from prismoe.model_plugins.tools.calibrate.recording import measure
    from prismoe.model_plugins.tools.calibrate.report import measured_report
    from prismoe.model_plugins.tools.calibrate.state import file_beside

    settings, fit = calibration.settings, calibration.fit
    start = {"policy": settings.policy, **calibration.own_settings, **fit.neutral}
    with _engine(calibration, start) as (engine, terminal):
        engine.call("prismoe_route_by", "native")
        told = engine.call("prismoe_routing")
        policies = {layer["layer"]: layer["policy"] for layer in told["layers"]}
        state = _recorded(calibration, engine, told, policies, terminal)
        data = _data(calibration, engine, told, state, terminal)
        # Each layer has its own of what is neutral; the policy is checked without the layers, too.
        routing = {**start, **fit.fit(data, calibration.goal).routing()}
        engine.call("prismoe_reroute", routing)
        state.begin_measuring(json.dumps(routing, sort_keys=True))
        measure(engine, calibration.prompts, state, terminal)
        identity = engine.call("prismoe_identity")
        memory = engine.memory_over_serving()
    measured = _measured(state, told["modalities"], data.top_k, data.rank_error)
    routing[CALIBRATED] = {"model": identity, "measured": measured.model_dump(mode="json")}
    print(measured_report([*policies], measured))
    print(memory)
    draft = settings.destination.with_name(f".{settings.destination.name}")
    draft.write_text(json.dumps(routing, indent=2) + "\n")
    draft.replace(settings.destination)
    file_beside(settings.destination).unlink()
    print(
        f"Wrote {settings.destination}. To serve by it: "
        f"prismoe serve {settings.model} --routing @{settings.destination}"
    )
    return 0


@contextmanager
def _engine(
    calibration: Calibration, routing: Mapping[str, Any] | None
) -> Iterator[tuple["CalibrationEngine", TextIO]]:
    """An engine that starts by `routing`, and where to show how far it is."""
    settings = calibration.settings
    with os.fdopen(os.dup(2), "w") as terminal, captured_output(settings.verbose) as log:
        from prismoe.model_plugins.tools.calibrate.engine import CalibrationEngine, special_tokens
        from prismoe.model_plugins.tools.chat_engine import chat_engine

        try:
            with chat_engine(calibration.arguments, routing) as llm:
                yield CalibrationEngine(llm, [] if routing is None else special_tokens(llm)), terminal
        except RuntimeError as error:
            raise ValueError(f"The checkpoint does not load. {log.first_error() or error}") from error


def _recorded(
    calibration: Calibration,
    engine: "CalibrationEngine",
    told: Mapping[str, Any],
    policies: Mapping[int, Mapping[str, Any]],
    terminal: TextIO,
) -> "State":
    """What the routers do that `told` describes, as the policies see it that will be in their place."""
    from prismoe.model_plugins.recording.calibration import Wanted
    from prismoe.model_plugins.tools.calibrate.fits.dual_threshold import kept, most_tried
    from prismoe.model_plugins.tools.calibrate.recording import SAMPLED_TOKENS, Recording, record, tell_cost
    from prismoe.model_plugins.tools.calibrate.state import State, file_beside

    settings, fit, prompts = calibration.settings, calibration.fit, calibration.prompts
    layers, is_ours = told["layers"], told["in_force"] == "policy"
    top_k = layers[0]["top_k"]
    fit.check(top_k, calibration.goal)
    policy = next(iter(policies.values()))
    wanted = Wanted(
        fit.measure,
        policy.get("top_k", top_k),
        policy.get("norm_topk_prob", True),
        max(1, SAMPLED_TOKENS // len(prompts)) if is_ours else 0,
        fit.needs_hidden,
    )
    tried = most_tried(calibration.goal) if fit.needs_divergence else 0
    recording = Recording(wanted, kept(calibration.goal), fit.needs_divergence, tried)
    experts = {layer["layer"]: layer["experts"] for layer in layers}
    file = file_beside(settings.destination)
    state = State.at(file, calibration.asked, experts)
    first = next(prompts.of(engine, 0))
    engine.watch_memory(first)
    tokens = len(first["prompt_token_ids"])
    tell_cost(recording, len(prompts), tokens, len(experts), not is_ours, file.name, terminal)
    record(engine, prompts, recording, state, terminal)
    return state


def _data(
    calibration: Calibration,
    engine: "CalibrationEngine",
    told: Mapping[str, Any],
    state: "State",
    terminal: TextIO,
) -> "CalibrationData":
    """What the fit takes, which may try routings in the engine."""
    from prismoe.model_plugins.tools.calibrate.recording import divergences

    tried = partial(divergences, engine, calibration.prompts, state, terminal)
    return state.data(told["layers"][0]["top_k"], calibration.fit.needs_divergence, tried)


def _measured(state: "State", modalities: list[str], top_k: int, rank_error: float) -> "Measured":
    from prismoe.model_plugins.routing.calibrated import Measured
    from prismoe.model_plugins.routing.policy import POLICY_MODALITIES

    prompts = state.measured
    there = [place for place, tokens in enumerate(state.tokens_LM[0]) if tokens]
    skipped_LM = 1 - state.uses_LM / (top_k * state.tokens_LM.clip(min=1))
    by_layer = (state.divergence_L2 / prompts).T.tolist() if state.divergence_L2.any() else []
    return Measured(
        prompts=prompts,
        tokens={modalities[place]: int(state.tokens_LM[0, place]) for place in there},
        skipped={modalities[place]: tuple(skipped_LM[:, place].tolist()) for place in there},
        divergence=float(state.kept_divergence) / prompts,
        layer_divergence={name: tuple(of) for name, of in zip(POLICY_MODALITIES, by_layer, strict=False)},
        rank_error=rank_error,
    )
