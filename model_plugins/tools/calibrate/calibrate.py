"""`prismoe calibrate`: records a model's routers, fits a policy to them, and writes the result.

For a MoE-LLaVA the result is a checkpoint with the policy, for one of vLLM's own models a file for
`--routing`.
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
    """A calibration: a policy to fit, and the checkpoint to fit it to."""

    settings: CalibrateSettings
    folder: Path
    fit: "Fitter"
    goal: "Goal"
    prompts: "Prompts"
    arguments: "EngineArgs"
    into_checkpoint: bool
    """Whether the result is a checkpoint, as for a MoE-LLaVA, and not a file for `--routing`."""

    @property
    def own_settings(self) -> Mapping[str, Any]:
        """The policy's settings that the fit doesn't change."""
        return self.goal.settings

    @property
    def digest(self) -> str:
        """A digest of what this calibration records; it differs for other calibrations."""
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
    """Print the effect of the fit, write the destination and return 0.

    Raises ValueError or OSError where that fails; the recording up to then stays next to the destination.
    """
    calibration = prepared(settings)
    return _into_checkpoint(calibration) if calibration.into_checkpoint else _into_file(calibration)


def prepared(settings: CalibrateSettings) -> Calibration:
    """Prepare the calibration. Raises ValueError or OSError where the settings don't work."""
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
    config_file = folder / "config.json"
    into_checkpoint = config_file.is_file() and is_moe_llava(read_json(config_file))
    goal = Goal(own_settings, **settings.goal)
    if into_checkpoint:
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
    arguments.enforce_eager = True  # a compiled engine can't be recorded
    return Calibration(settings, folder, fit, goal, prompts, arguments, into_checkpoint)


def _check_moe_llava(folder: Path, routing: Mapping[str, Any], searches: bool) -> None:
    """Raise ValueError where the checkpoint or the policy's settings don't allow calibration.

    `searches` says whether the fit tries the policy in place of the checkpoint's own.
    """
    from transformers import AutoConfig

    from prismoe.model_plugins.models.moe_llava.config import check_config_file, routing_in_force

    check_config_file(folder)
    config = AutoConfig.from_pretrained(folder)
    fitted = routing_in_force(config, routing)
    for layer, routed in routing_in_force(config, None).layers.items():
        room = routed.policy.slots(routed.num_experts)
        if searches and fitted.layers[layer].policy.slots(routed.num_experts) > room:
            raise ValueError(
                "The search tries the policy in place of the checkpoint's own, which gives a token "
                f"at most {room} experts in layer {layer}: use a smaller top_k, or --skip for a fit "
                "without a search."
            )
        if routed.policy.gate_rows(routed.num_experts) != routed.num_experts:
            raise ValueError(
                f"Layer {layer} of {folder} routes without a logit for each expert, and "
                "calibration needs these: calibrate the checkpoint that this one was made from."
            )


def _check_any_gate(settings: CalibrateSettings, fit: "Fitter", own_settings: Mapping[str, Any]) -> None:
    """Raise ValueError where the fit, or its file, is impossible for one of vLLM's own models."""
    from prismoe.model_plugins.routing.any_gate import OperatorPolicies

    if fit.measure is None:
        raise ValueError(
            f"A fit of {settings.policy} gives tensors, which only a MoE-LLaVA checkpoint can hold: for this "
            "model use ltdr, dual_threshold or entropy."
        )
    OperatorPolicies.of({"policy": settings.policy, **own_settings, **fit.neutral})
    if settings.destination.exists():
        raise ValueError(f"{settings.destination} exists: name a file that is not there yet.")
    if not settings.destination.parent.is_dir():
        raise ValueError(f"There is no folder {settings.destination.parent}: create it first.")


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
    """Start a MoE-LLaVA's engine, which runs until the block ends, and record its routers."""
    from transformers import AutoConfig

    from prismoe.model_plugins.models.moe_llava.config import routing_in_force

    config = AutoConfig.from_pretrained(calibration.folder)
    own = routing_in_force(config, {"policy": calibration.settings.policy, **calibration.own_settings})
    policies = {layer: routed.policy.model_dump() for layer, routed in own.layers.items()}
    with _engine(calibration, None) as (engine, terminal):
        served = engine.call("prismoe_routing")
        state = _recorded(calibration, engine, served, policies, terminal)
        yield engine, _data(calibration, engine, served, state, terminal)


def _into_file(calibration: Calibration) -> int:
    from prismoe.model_plugins.routing.calibrated import CALIBRATED
    from prismoe.model_plugins.tools.calibrate.recording import measure
    from prismoe.model_plugins.tools.calibrate.report import measured_report
    from prismoe.model_plugins.tools.calibrate.state import file_beside

    settings, fit = calibration.settings, calibration.fit
    start = {"policy": settings.policy, **calibration.own_settings, **fit.neutral}
    with _engine(calibration, start) as (engine, terminal):
        engine.call("prismoe_route_by", "native")
        served = engine.call("prismoe_routing")
        policies = {layer["layer"]: layer["policy"] for layer in served["layers"]}
        state = _recorded(calibration, engine, served, policies, terminal)
        data = _data(calibration, engine, served, state, terminal)
        # Each layer overrides the neutral settings; they stay because the policy is also checked without
        # layers.
        routing = {**start, **fit.fit(data, calibration.goal).routing()}
        engine.call("prismoe_reroute", routing)
        state.begin_measuring(json.dumps(routing, sort_keys=True))
        measure(engine, calibration.prompts, state, terminal)
        identity = engine.call("prismoe_identity")
        memory = engine.memory_over_serving()
    measured = _measured(state, served["modalities"], data.top_k, data.rank_error)
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
    """Start an engine with `routing`; also gives the stream for progress."""
    settings = calibration.settings
    with os.fdopen(os.dup(2), "w") as terminal, captured_output(settings.verbose) as log:
        from prismoe.model_plugins.tools.calibrate.engine import CalibrationEngine, special_tokens
        from prismoe.model_plugins.tools.chat_engine import chat_engine

        try:
            with chat_engine(calibration.arguments, routing) as llm:
                yield CalibrationEngine(llm, [] if routing is None else special_tokens(llm)), terminal
        except RuntimeError as error:
            raise ValueError(f"The checkpoint does not load. {log.cause(error)}") from error


def _recorded(
    calibration: Calibration,
    engine: "CalibrationEngine",
    served: Mapping[str, Any],
    policies: Mapping[int, Mapping[str, Any]],
    terminal: TextIO,
) -> "State":
    """Record the routers that `served` describes, as the policies that replace them will see them."""
    from prismoe.model_plugins.recording.calibration import TokenValues
    from prismoe.model_plugins.tools.calibrate.fits.dual_threshold import kept, most_tried
    from prismoe.model_plugins.tools.calibrate.recording import SAMPLED_TOKENS, Recording, print_cost, record
    from prismoe.model_plugins.tools.calibrate.state import State, file_beside

    settings, fit, prompts = calibration.settings, calibration.fit, calibration.prompts
    layers, into_checkpoint = served["layers"], calibration.into_checkpoint
    top_k = layers[0]["top_k"]
    fit.check(top_k, calibration.goal)
    policy = next(iter(policies.values()))
    values = TokenValues(
        fit.measure,
        policy.get("top_k", top_k),
        policy.get("norm_topk_prob", True),
        max(1, SAMPLED_TOKENS // len(prompts)) if into_checkpoint else 0,
        fit.needs_hidden,
    )
    tried = most_tried(calibration.goal) if fit.needs_divergence else 0
    recording = Recording(values, kept(calibration.goal), fit.needs_divergence, tried)
    experts = {layer["layer"]: layer["experts"] for layer in layers}
    file = file_beside(settings.destination)
    state = State.at(file, calibration.digest, experts)
    first = next(prompts.of(engine, 0))
    engine.watch_memory(first)
    tokens = len(first["prompt_token_ids"])
    print_cost(recording, len(prompts), tokens, len(experts), not into_checkpoint, file.name, terminal)
    record(engine, prompts, recording, state, terminal)
    return state


def _data(
    calibration: Calibration,
    engine: "CalibrationEngine",
    served: Mapping[str, Any],
    state: "State",
    terminal: TextIO,
) -> "CalibrationData":
    """The data for the fit, which may try routings in the engine."""
    from prismoe.model_plugins.tools.calibrate.recording import divergences

    tried = partial(divergences, engine, calibration.prompts, state, terminal)
    return state.data(served["layers"][0]["top_k"], calibration.fit.needs_divergence, tried)


def _measured(state: "State", modalities: list[str], top_k: int, rank_error: float) -> "Measured":
    from prismoe.model_plugins.routing.calibrated import Measured
    from prismoe.model_plugins.routing.policy import POLICY_MODALITIES

    prompts = state.measured
    present = [place for place, tokens in enumerate(state.tokens_LM[0]) if tokens]
    skipped_LM = 1 - state.uses_LM / (top_k * state.tokens_LM.clip(min=1))
    by_layer = (state.divergence_L2 / prompts).T.tolist() if state.divergence_L2.any() else []
    return Measured(
        prompts=prompts,
        tokens={modalities[place]: int(state.tokens_LM[0, place]) for place in present},
        skipped={modalities[place]: tuple(skipped_LM[:, place].tolist()) for place in present},
        divergence=float(state.measured_divergence) / prompts,
        layer_divergence={name: tuple(of) for name, of in zip(POLICY_MODALITIES, by_layer, strict=False)},
        rank_error=rank_error,
    )
