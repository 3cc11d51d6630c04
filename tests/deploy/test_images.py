"""The Dockerfiles and the script beside them, as far as they can be checked without building them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from prismoe.server.access.keys import KeyFile
from tests.deploy.conftest import DEPLOY, REPOSITORY
from tests.deploy.dockerfile import Stage, assignments, stages

BIN = Path(sys.executable).parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(params=["cpu", "cuda"])
def dockerfile(request: pytest.FixtureRequest) -> Path:
    return DEPLOY / f"Dockerfile.{request.param}"


@pytest.fixture
def image(dockerfile: Path) -> Stage:
    return stages(dockerfile)[-1]


def test_hadolint_has_nothing_to_say(dockerfile: Path) -> None:
    done = subprocess.run([BIN / "hadolint", dockerfile], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run([BIN / "shellcheck", DEPLOY / "key.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_base_is_pinned(dockerfile: Path) -> None:
    found = stages(dockerfile)
    names = {stage.name for stage in found}
    for stage in found:
        assert stage.base in names or re.search(r":v?\d+\.\d+\.\d+", stage.base), stage.base


def test_the_container_is_not_root(image: Stage) -> None:
    assert image.last("USER") == "2000:0"
    assert assignments(image.last("ENV"))["HOME"] == image.last("WORKDIR") == "/home/vllm"


def test_labels_tell_what_it_is(image: Stage) -> None:
    labels = assignments(image.last("LABEL"))
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert labels["org.opencontainers.image.description"] == PROJECT["description"]
    version = dict(
        pair for key, text in image.instructions if key == "ARG" for pair in assignments(text).items()
    )
    assert version["VERSION"] == PROJECT["version"]


def copied(dockerfile: Path) -> set[str]:
    """What is copied from the context."""
    return {
        source
        for stage in stages(dockerfile)
        for keyword, value in stage.instructions
        if keyword == "COPY" and not value.startswith("--from")
        for source in value.split()[:-1]
    }


def test_the_context_holds_what_is_copied() -> None:
    """.dockerignore leaves everything out but what it lists."""
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    assert copied(DEPLOY / "Dockerfile.cpu") | copied(DEPLOY / "Dockerfile.cuda") == kept
    assert all((REPOSITORY / source).exists() for source in kept)


def test_all_parts_are_packed(dockerfile: Path) -> None:
    """Each folder that pyproject.toml makes a package of is copied before the wheel is built."""
    tool = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    [package] = [stage for stage in stages(dockerfile) if stage.name == "package"]
    copied = {value.split()[0] for keyword, value in package.instructions if keyword == "COPY"}
    assert set(tool["package-dir"].values()) <= copied


def test_versions_are_those_of_the_project() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    arguments = dict(
        pair
        for keyword, value in stages(DEPLOY / "Dockerfile.cpu")[0].instructions
        if keyword == "ARG"
        for pair in assignments(value).items()
    )
    assert f"\nTORCH := torch=={locked('cpu')['torch']}\n" in makefile
    assert f"\nTORCH_INDEX := {arguments['TORCH_INDEX']}\n" in makefile
    [vllm] = PROJECT["optional-dependencies"]["cuda"]
    assert stages(DEPLOY / "Dockerfile.cuda")[-1].base == "vllm/vllm-openai:" + vllm.replace("vllm==", "v")


def locked(name: str) -> dict[str, str]:
    """The versions of a lock file, in which each has hashes."""
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


def test_the_lock_holds_what_the_project_asks_for() -> None:
    versions = locked("cpu")
    for text in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["cpu"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(versions[wanted.name]), text
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(versions)


def test_the_lock_holds_what_builds_the_project() -> None:
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"]["requires"]
    for wanted in map(Requirement, build):
        assert wanted.specifier.contains(locked("build")[wanted.name])


def test_images_install_locked_packages_alone(dockerfile: Path) -> None:
    """But for Ray, which has to be asked for, and prismoe itself."""
    installs = [
        value
        for stage in stages(dockerfile)
        for keyword, value in stage.instructions
        if keyword == "RUN" and "pip install" in value and "$RAY" not in value
    ]
    assert installs
    for value in installs:
        assert "--require-hashes" in value or "--no-index /wheels/*.whl" in value, value


@pytest.mark.parametrize("role", ["client", "metrics"])
def test_the_script_makes_a_key_that_the_server_knows(tmp_path: Path, role: str) -> None:
    file = tmp_path / "api_keys"
    for name in ("alice", "bob"):
        done = subprocess.run(
            [DEPLOY / "key.sh", name, role, file], capture_output=True, text=True, check=True
        )
        found = KeyFile(file).find(done.stdout.strip())
        assert found is not None and (found.name, found.role) == (name, role)
    assert len(done.stdout.strip()) == 64


def test_the_script_says_what_it_wants(tmp_path: Path) -> None:
    done = subprocess.run([DEPLOY / "key.sh", "alice"], capture_output=True, text=True)
    assert done.returncode == 2 and "Say whose key it is" in done.stderr


def test_the_entry_point_is_prismoe(image: Stage) -> None:
    assert json.loads(image.last("ENTRYPOINT")) == ["prismoe"]
    assert json.loads(image.last("CMD")) == ["serve"]
