"""The interpretation of vLLM's arguments, without an engine."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from prismoe.server.commands import serve, vllm_arguments
from prismoe.server.commands.cli import main
from prismoe.server.commands.interruption import StartSignals
from prismoe.server.commands.vllm_arguments import parse_vllm_arguments
from prismoe.server.errors import explained
from prismoe.server.settings import ServeSettings
from tests.model_plugins.engine import PHI

LIMIT_S = 240
NAME, COMMIT = "LanguageBind/MoE-LLaVA-Tiny", "0123456789abcdef0123456789abcdef01234567"


def test_a_hub_name_is_served_under_that_name_from_the_local_cache(tmp_path: Path) -> None:
    repository = tmp_path / "models--LanguageBind--MoE-LLaVA-Tiny"
    folder = shutil.copytree(PHI, repository / "snapshots" / COMMIT)
    options = ("--download-dir", str(tmp_path), "--revision", COMMIT)
    args = parse_vllm_arguments(ServeSettings(model=NAME, engine_options=options))
    assert args.model == str(folder)
    assert args.served_model_name == [NAME]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--trust-remote-code",), "give --run-checkpoint-code."),
        (("--headless",), "one HTTP process: leave out --headless."),
        (("--grpc",), "one HTTP process: leave out --grpc."),
        (("--grpc-port", "9000"), "one HTTP process: leave out --grpc-port."),
        (("--api-server-count", "2"), "one HTTP process: leave out --api-server-count."),
        (("--api-server-count", "0"), "one HTTP process: leave out --api-server-count."),
        (("--data-parallel-multi-port-external-lb",), "one HTTP process"),
        (("--data-parallel-supervisor-port", "9000"), "one HTTP process"),
        (("--dp-supervisor-probe-interval-s", "1"), "one HTTP process"),
        (("--dp-supervisor-probe-timeout-s", "1"), "one HTTP process"),
        (("--dp-supervisor-probe-failure-threshold", "1"), "one HTTP process"),
        (("--enable-server-load-tracking",), "no route /load: leave out --enable-server-load-tracking."),
        (("--enable-tokenizer-info-endpoint",), "no route /tokenizer_info"),
        (("--enable-offline-docs",), "no route /docs"),
        (("--enable-scale-out",), "no route /inference/v1/generate"),
        (("--tokens-only",), "no route /inference/v1/generate"),
        (("--return-sampling-mask",), "no route /inference/v1/generate"),
        (("--enable-trace-replay",), "no route /inference/v1/generate"),
        (("--no-cohere-is-reasoning-model",), "/cohere/v2/chat: leave out --no-cohere-is-reasoning-model."),
        (("--runner", "pooling"), "no route /pooling: leave out --runner."),
        (("--convert", "embed"), "no route /pooling"),
        (("--pooler-config", '{"pooling_type": "MEAN"}'), "no route /pooling"),
        (("--io-processor-plugin", "mine"), "no route /pooling"),
        (("--no-enable-flash-late-interaction",), "no route /score"),
        (("--enable-sleep-mode",), "no route /sleep"),
        (("--sleep-mode-offload-cudagraph",), "no route /sleep"),
        (("--sleep-preserve-parameter-names", "a.*"), "no route /sleep"),
        (("--enable-nccl-comm-suspend",), "no route /sleep"),
        (
            ("--profiler-config.profiler", "torch", "--profiler-config.torch_profiler_dir", "/tmp"),
            "/start_profile",
        ),
        (("--weight-transfer-config", '{"backend": "nccl"}'), "no route /update_weights"),
        (("--enable-elastic-ep",), "no route /scale_elastic_ep"),
        (("--elastic-ep-max-dp-size", "4"), "no route /scale_elastic_ep"),
        (("--enable-fault-tolerance",), "no route /fault_tolerance/apply"),
        (
            ("--fault-tolerance-config", '{"engine_recovery_timeout_sec": 1}'),
            "no route /fault_tolerance/apply",
        ),
        (("--lora-modules", "mine=/mine"), "no LoRA adapters"),
        (("--default-mm-loras", '{"image": "/mine"}'), "no LoRA adapters"),
        (("--tool-server", "demo"), "runs no tools: leave out --tool-server."),
        (("--h11-max-header-count", "9"), "another parser"),
        (("--h11-max-incomplete-event-size", "9"), "another parser"),
        (("--media-io-kwargs", '{"video": {"backend": "torchcodec"}}'), "leave video.backend out."),
        (("--port", "65536"), "--port is 65536: give a number from 0 to 65535."),
        (("--port", "-1"), "--port is -1: "),
    ],
)
def test_unsupported_options_are_refused_with_a_message(option: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        parse_vllm_arguments(ServeSettings(model=str(PHI), engine_options=option))


@pytest.mark.parametrize(
    "option",
    [
        ("--api-server-count", "1"),
        ("--runner", "generate"),
        ("--convert", "none"),
        ("--no-enable-scale-out",),
        ("--no-enable-sleep-mode",),
        ("--cohere-is-reasoning-model",),
        ("--enable-request-id-headers",),
        ("--enable-prompt-tokens-details",),
        ("--disable-fastapi-docs",),
        ("--disable-uvicorn-access-log",),
        ("--root-path", "/prismoe"),
        ("--kv-events-config", '{"enable_kv_cache_events": true}'),
        ("--enable-return-routed-experts",),
        ("--port", "0"),
    ],
)
def test_supported_or_empty_options_are_accepted(option: tuple[str, ...]) -> None:
    parse_vllm_arguments(ServeSettings(model=str(PHI), engine_options=option))


@pytest.mark.slow
def test_a_host_without_a_device_gets_a_message() -> None:
    """A build for CUDA finds no device if there is no usable GPU."""
    program = (
        "import vllm.platforms\n"
        "from vllm.platforms.interface import UnspecifiedPlatform\n"
        "vllm.platforms._current_platform = UnspecifiedPlatform()\n"
        "from prismoe.server.commands.cli import main\n"
        "raise SystemExit(main(['serve']))\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S)
    assert said.returncode == 1 and "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-1].startswith("prismoe: vLLM finds no device that its build can use.")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            RuntimeError("Only one platform plugin can be activated."),
            "Only one platform plugin can be activated.",
        ),
        (
            ImportError("libcuda.so.1: cannot open shared object file"),
            "libcuda.so.1: cannot open shared object file",
        ),
        (KeyError("cuda"), "KeyError in "),
        (AssertionError(), "AssertionError in "),
    ],
)
def test_every_error_of_vllms_options_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, sentence: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(vllm_arguments, "make_arg_parser", fail)
    monkeypatch.setattr(StartSignals, "take", lambda self: None)
    monkeypatch.setattr(serve, "prepare_environment", lambda model: None)
    assert main(["serve"]) == 1
    message = capsys.readouterr().err.splitlines()
    assert (
        message[-1].startswith("prismoe: ")
        and sentence in message[-1]
        and "Traceback" not in "".join(message)
    )


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    """The folder of a model other than MoE-LLaVA. Options only need its config.json."""
    config = {"architectures": ["Qwen3VLMoeForConditionalGeneration"], "model_type": "qwen3_vl_moe"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_options_of_other_models_are_vllms(qwen: Path) -> None:
    options = {
        "tokenizer_mode": "slow",
        "chat_template": "{{ messages }}",
        "tool_call_parser": "hermes",
        "reasoning_parser": "qwen3",
        "quantization": "fp8",
        "max_model_len": 4096,
        "mm_encoder_tp_mode": "data",
        "enable_auto_tool_choice": True,
        "media_io_kwargs": {"video": {"num_frames": 8}},
    }
    given = []
    for name, value in options.items():
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        given += ["--" + name.replace("_", "-"), *([] if value is True else [text])]
    args = parse_vllm_arguments(ServeSettings(model=str(qwen), engine_options=tuple(given)))
    assert {name: getattr(args, name) for name in options} == options
    assert args.model == str(qwen) and args.trust_remote_code is False


def test_requests_may_only_choose_their_routing_on_moe_llava(qwen: Path) -> None:
    def trusted(model: Path, *options: str) -> bool:
        return parse_vllm_arguments(
            ServeSettings(model=str(model), engine_options=options)
        ).trust_request_mm_kwargs

    assert trusted(PHI) is True and trusted(qwen) is False
    assert trusted(qwen, "--trust-request-mm-kwargs") is True
    assert trusted(PHI, "--no-trust-request-mm-kwargs") is False


def test_prompts_have_few_media_unless_the_operator_allows_more(qwen: Path) -> None:
    args = parse_vllm_arguments(ServeSettings(model=str(qwen)))
    assert args.limit_mm_per_prompt == {"image": 8, "video": 1, "vision_chunk": 8}
    own = ("--limit-mm-per-prompt", '{"image": 2}')
    args = parse_vllm_arguments(ServeSettings(model=str(qwen), engine_options=own))
    assert args.limit_mm_per_prompt == {"image": 2}


def test_code_of_a_checkpoint_runs_only_with_its_own_option(qwen: Path) -> None:
    assert parse_vllm_arguments(ServeSettings(model=str(qwen), run_checkpoint_code=True)).trust_remote_code
    both = ServeSettings(model=str(qwen), run_checkpoint_code=True, engine_options=("--trust-remote-code",))
    with pytest.raises(ValueError, match="does not take --trust-remote-code"):
        parse_vllm_arguments(both)


def test_advice_to_trust_code_names_prismoes_option() -> None:
    advice = ValueError("Please pass the argument `trust_remote_code=True`.")
    assert explained(advice) == f"{advice} prismoe's option for this is --run-checkpoint-code."
    with pytest.raises(ValueError) as refused:
        parse_vllm_arguments(ServeSettings(model=str(PHI), engine_options=("--trust-remote-code",)))
    assert explained(refused.value) == vllm_arguments.REMOTE_CODE


def test_the_config_can_be_elsewhere(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bare = tmp_path_factory.mktemp("bare")
    given = ("--hf-config-path", str(qwen))
    assert parse_vllm_arguments(ServeSettings(model=str(bare), engine_options=given)).model == str(bare)
    with pytest.raises(ValueError, match=re.escape("holds no config.json")):
        parse_vllm_arguments(ServeSettings(model=str(bare)))
    (bare / "params.json").write_text("{}")
    assert not parse_vllm_arguments(ServeSettings(model=str(bare))).trust_request_mm_kwargs


def test_a_moe_llava_by_its_architecture_alone_is_checked(qwen: Path) -> None:
    config = json.loads((PHI / "config.json").read_text()) | {"model_type": "moe_llava_other"}
    (qwen / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="gives the model_type 'moe_llava_other'; prismoe serves"):
        parse_vllm_arguments(ServeSettings(model=str(qwen)))


def test_another_served_name_can_be_set() -> None:
    settings = ServeSettings(model=str(PHI), engine_options=("--served-model-name", "mine"))
    args = parse_vllm_arguments(settings)
    assert args.model == str(PHI)
    assert args.served_model_name == ["mine"]


def test_structured_output_is_compact_json_unless_the_operator_changes_it() -> None:
    config = parse_vllm_arguments(ServeSettings(model=str(PHI))).structured_outputs_config
    assert (config.backend, config.disable_any_whitespace) == ("xgrammar", True)
    own = ("--structured-outputs-config", '{"backend": "guidance"}')
    config = parse_vllm_arguments(ServeSettings(model=str(PHI), engine_options=own)).structured_outputs_config
    assert (config.backend, config.disable_any_whitespace) == ("guidance", False)
