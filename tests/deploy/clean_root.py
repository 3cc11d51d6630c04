"""Builds the CPU image and runs the `cpu` service of compose.yaml without Docker, in a clean Debian root.

    make clean-root

It carries out Dockerfile.cpu's own instructions and what the real Compose makes of compose.yaml: the same
user, entry point, environment, read-only root, volumes, /tmp and /dev/shm, without capabilities, in a network
of its own. Then the health check has to pass and the bundled model to answer the demo's questions. Unlike in
Docker, the base is Debian's own Python 3.11, and memory, CPU and system calls are not limited.

Needs root, debootstrap, bubblewrap and iproute2. Takes about three minutes and 9 GB of disk.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prismoe.server.access.keys import Role, add_key
from tests.deploy.dockerfile import Stage, assignments, expand, stages

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
WORK = REPOSITORY / ".cache/clean-root"
API_KEYS = WORK / "api_keys"
NETWORK = "prismoe-clean-root"
PATH = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
SIZES = {"k": 2**10, "m": 2**20, "g": 2**30}


@dataclass
class Image:
    """A root file system, and what the Dockerfile says of its processes."""

    root: Path
    environment: dict[str, str]
    user: str = "0:0"
    folder: str = "/"


def main() -> None:
    """Build, serve, ask, stop."""
    start = time.monotonic()
    recipe = stages(DEPLOY / "Dockerfile.cpu")
    image = build(recipe)
    print(f"Built in {time.monotonic() - start:.0f} s: {_size(image.root)} MB.", flush=True)
    keys = make_keys()
    service = compose_service()
    with network() as in_network, server(image, recipe[-1], service, in_network) as process:
        start = time.monotonic()
        wait_until_healthy(image, recipe[-1], service, in_network, process)
        print(f"Healthy after {time.monotonic() - start:.0f} s.", flush=True)
        ask = [*in_network, sys.executable, "-m", "tests.deploy.ask", "http://127.0.0.1:8000", *keys]
        subprocess.run(ask, check=True, cwd=REPOSITORY)
        stop(process)
    print(f"The volume /home/vllm holds {_size(WORK / 'volumes/home-cpu')} MB.")
    print("The image's steps and the service run in a clean root.")


def build(recipe: Sequence[Stage]) -> Image:
    """The image of the last stage."""
    images = {recipe[0].base: Image(_base(), {"PATH": PATH})}
    image = images[recipe[0].base]
    for number, stage in enumerate(recipe):
        parent = images[stage.base]
        root = WORK / "stages" / str(number)
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", parent.root, root], check=True)
        image = images[stage.name] = Image(root, dict(parent.environment))
        arguments: dict[str, str] = {}
        for keyword, value in stage.instructions:
            _carry_out(keyword, value, image, images, arguments)
    return image


def make_keys() -> list[str]:
    """A client's key and Prometheus's, in a file of keys."""
    API_KEYS.unlink(missing_ok=True)
    keys = [add_key(API_KEYS, role, role) for role in Role]
    API_KEYS.chmod(0o444)
    return keys


def compose_service() -> dict[str, Any]:
    """The `cpu` service, as Compose reads it with the settings of .env.example and the file of keys."""
    compose = [Path(sys.executable).with_name("docker-compose"), "--file", DEPLOY / "compose.yaml"]
    config = subprocess.run(
        [*compose, "--env-file", DEPLOY / ".env.example", "--profile", "cpu", "config", "--format", "json"],
        env=os.environ | {"API_KEYS_FILE": str(API_KEYS)},
        check=True,
        stdout=subprocess.PIPE,
    )
    configured = json.loads(config.stdout)
    service: dict[str, Any] = configured["services"]["cpu"]
    service["secret_files"] = {
        secret["target"]: configured["secrets"][secret["source"]]["file"] for secret in service["secrets"]
    }
    return service


@contextmanager
def network() -> Iterator[list[str]]:
    """A network with a loopback device and nothing else; what to put before a command to run it there."""
    subprocess.run(["ip", "netns", "delete", NETWORK], stderr=subprocess.DEVNULL)  # of a run that was killed
    subprocess.run(["ip", "netns", "add", NETWORK], check=True)
    try:
        enter = ["ip", "netns", "exec", NETWORK]
        subprocess.run([*enter, "ip", "link", "set", "lo", "up"], check=True)
        yield enter
    finally:
        subprocess.run(["ip", "netns", "delete", NETWORK], check=True)


@contextmanager
def server(
    image: Image, stage: Stage, service: dict[str, Any], in_network: list[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """The running service; its log is in the work folder."""
    shutil.rmtree(WORK / "volumes", ignore_errors=True)
    command = [*json.loads(stage.last("ENTRYPOINT")), *(service["command"] or json.loads(stage.last("CMD")))]
    container = _container(image, service, in_network)
    with (WORK / "server.log").open("w") as log:
        process = subprocess.Popen([*container, *command], stdout=log, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()  # Everything in its process namespace ends with it.
            process.wait()


def wait_until_healthy(
    image: Image,
    stage: Stage,
    service: dict[str, Any],
    in_network: list[str],
    process: subprocess.Popen[bytes],
) -> None:
    """Run the image's health check until it passes, no longer than its start period."""
    options, command = stage.last("HEALTHCHECK").split(" CMD ")
    minutes = re.search(r"--start-period=(\d+)m", options)
    assert minutes, "The health check has no start period."
    check = [*_container(image, service, in_network), *json.loads(command)]
    end = time.monotonic() + 60 * int(minutes[1])
    while subprocess.run(check, stderr=subprocess.DEVNULL).returncode != 0:
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit((WORK / "server.log").read_text() + "\nThe server did not get healthy.")
        time.sleep(1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server as Docker does: a signal to its first process, which has to end by itself."""
    start = time.monotonic()
    init = int(_children(process.pid)[0])
    os.kill(int(_children(init)[0]), signal.SIGTERM)
    status = process.wait(timeout=30)
    assert status == 0, f"The server ended with status {status}."
    print(f"Stopped within {time.monotonic() - start:.1f} s, status 0.")


def _base() -> Path:
    """A minimal Debian with Python where Docker's python images have it. Made once."""
    root = WORK / "base"
    if not (root / "usr/local/bin/pip").exists():
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", root], check=True)
        subprocess.run(["chroot", root, "python3", "-m", "venv", "/usr/local"], check=True)
    return root


def _carry_out(
    keyword: str, value: str, image: Image, images: Mapping[str, Image], arguments: dict[str, str]
) -> None:
    variables = arguments | image.environment
    match keyword:
        case "ARG":
            arguments.update(assignments(value))
        case "ENV":
            image.environment |= {k: expand(v, variables) for k, v in assignments(value).items()}
        case "WORKDIR":
            image.folder = value
            (image.root / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = value
        case "COPY":
            _copy(value, image, images)
        case "RUN":
            print(f"RUN {value}", flush=True)
            _run(value, image, images, arguments)
        case "LABEL" | "EXPOSE" | "HEALTHCHECK" | "ENTRYPOINT" | "CMD":
            pass
        case _:
            raise ValueError(f"{keyword} is not known here.")


def _copy(value: str, image: Image, images: Mapping[str, Image]) -> None:
    words = value.split()
    origin = REPOSITORY
    if words[0].startswith("--from="):
        origin = images[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    place = image.root / (Path(image.folder) / target).as_posix().lstrip("/")
    for source in sources:
        found = origin / source.lstrip("/")
        if found.is_dir():
            ignored = shutil.ignore_patterns("__pycache__") if origin == REPOSITORY else None
            shutil.copytree(found, place, symlinks=True, ignore=ignored)
        else:
            shutil.copy2(found, place)


def _run(value: str, image: Image, images: Mapping[str, Image], arguments: Mapping[str, str]) -> None:
    mounts = []
    while mount := re.match(r"\s*--mount=type=bind,from=(\w+),source=(\S+),target=(\S+)", value):
        mounts += ["--ro-bind", str(images[mount[1]].root / mount[2].lstrip("/")), mount[3]]
        value = value[mount.end() :]
    environment = {**image.environment, **arguments, **_pip_settings()}
    command = ["bwrap", "--bind", str(image.root), "/", "--dev", "/dev", "--proc", "/proc", "--clearenv"]
    command += [
        "--cap-add",
        "ALL",
        "--ro-bind",
        "/etc/resolv.conf",
        "/etc/resolv.conf",
        "--chdir",
        image.folder,
    ]
    for place in _pip_places():
        command += ["--ro-bind", place, place]
    for name, text in environment.items():
        command += ["--setenv", name, text]
    subprocess.run([*command, *mounts, "/bin/sh", "-c", value], check=True)


def _container(image: Image, service: dict[str, Any], in_network: list[str]) -> list[str]:
    """The start of a command that runs in the image as the service says."""
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    command = [*in_network, "bwrap", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    command += ["--ro-bind", str(image.root), "/", "--proc", "/proc", "--dev", "/dev"]
    command += ["--ro-bind", "/sys", "/sys", "--cap-add", "ALL"]
    command += ["--perms", "1777", "--size", service["shm_size"], "--tmpfs", "/dev/shm"]
    for entry in service["tmpfs"]:
        place, options = entry.split(":")
        settings = dict(option.split("=") for option in options.split(",") if "=" in option)
        size = int(settings["size"][:-1]) * SIZES[settings["size"][-1]]
        command += ["--perms", settings["mode"], "--size", str(size), "--tmpfs", place]
    for volume in service["volumes"]:
        command += ["--bind", str(_volume(image, volume)), volume["target"]]
    for target, file in service["secret_files"].items():
        place = image.root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        command += ["--ro-bind", file, target]
    command += ["--clearenv", "--chdir", image.folder]
    for name, text in (image.environment | service.get("environment", {})).items():
        command += ["--setenv", name, text]
    user, group = image.user.split(":")
    return [
        *command,
        *("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--no-new-privs"),
        *("--bounding-set=-all", "--inh-caps=-all"),
    ]


def _volume(image: Image, volume: Mapping[str, str]) -> Path:
    """A named volume's folder; like Docker's, a new one starts with what the image has in its place."""
    place = WORK / "volumes" / volume["source"]
    if not place.exists():
        place.parent.mkdir(exist_ok=True)
        origin = image.root / volume["target"].lstrip("/")
        subprocess.run(["cp", "--archive", origin, place], check=True)
    return place


def _pip_settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}


def _pip_places() -> list[str]:
    """The files and folders of this machine's pip settings: where its packages come from."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdout=subprocess.PIPE, text=True
    )
    words = [*shlex.split(listed.stdout.replace("\\n", " ")), *_pip_settings().values()]
    places = {path for word in words for path in re.findall(r"(?:^|=|://|\s)(/[^\s']+)", word)}
    return sorted(path for path in places | {"/etc/pip.conf"} if Path(path).exists())


def _children(process: int) -> list[str]:
    return Path(f"/proc/{process}/task/{process}/children").read_text().split()


def _size(folder: Path) -> int:
    """Megabytes."""
    counted = subprocess.run(["du", "-sm", folder], check=True, stdout=subprocess.PIPE, text=True)
    return int(counted.stdout.split()[0])


if __name__ == "__main__":
    main()
