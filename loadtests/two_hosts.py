"""Runs two hosts with one replica each behind vLLM's router on a third, and kills one host under load.

    make two-hosts

The hosts are network namespaces of this machine without a connection to the outside. They end with the
command. Every request has to be answered: the router repeats those that the dead host leaves unanswered, and
the client repeats those whose stream breaks. The replicas' counts have to add up to the answered requests.

Needs iproute2, and root or the right to make user namespaces. Takes about a minute.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from prismoe.loadtests.local_server import gets_healthy, running
from prismoe.loadtests.target import computed_tokens, counters, counters_now, finished, total
from prismoe.loadtests.traffic import QUESTIONS, chat, picture

HOSTS = {"a": "10.77.1", "b": "10.77.2"}
ROUTER = "http://127.0.0.1:8080"
REQUESTS, DIFFERENT, AT_ONCE, KILL_AFTER = 120, 12, 8, 40
INSIDE = "--inside"


def main() -> int:
    """Run the test in new namespaces, and return the exit status."""
    if INSIDE in sys.argv:
        print(json.dumps(asyncio.run(measure()), indent=1))
        return 0
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    own = ["unshare", *user, "--net", "--mount", "--fork", "--kill-child"]
    try:
        subprocess.run([*own, "ip", "-Version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        print(
            f"This host can't make a network namespace: {reason}. Install iproute2, and run this as root.",
            file=sys.stderr,
        )
        return 1
    return subprocess.run([*own, sys.executable, "-m", "prismoe.loadtests.two_hosts", INSIDE]).returncode


async def measure() -> dict[str, Any]:
    """The counts of the requests. Raises AssertionError if one is lost or the metrics don't add up."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_hosts()
        replicas = {host: stack.enter_context(replica(host, folder / host)) for host in HOSTS}
        for host, process in replicas.items():
            wait(f"http://{HOSTS[host]}.2:8000", process, folder / host)
        command = [
            sys.executable,
            "-m",
            "vllm_router.launch_router",
            "--port",
            "8080",
            "--policy",
            "round_robin",
            "--retry-max-retries",
            "10",
            "--worker-urls",
        ]
        workers = [f"http://{network}.2:8000" for network in HOSTS.values()]
        front = stack.enter_context(running([*command, *workers], folder / "router"))
        wait(ROUTER, front, folder / "router")
        return await kill_one_under_load(replicas["a"])


def make_hosts() -> None:
    """Make two namespaces, each with a virtual cable to this one."""
    # Private mounts, so that the named namespaces disappear with this mount namespace.
    run("mount", "--make-rprivate", "/")
    Path("/run/netns").mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "hosts", "/run/netns")
    run("ip", "link", "set", "lo", "up")
    for host, network in HOSTS.items():
        run("ip", "netns", "add", host)
        run("ip", "link", "add", f"to-{host}", "type", "veth", "peer", "name", "eth0", "netns", host)
        run("ip", "address", "add", f"{network}.1/24", "dev", f"to-{host}")
        run("ip", "link", "set", f"to-{host}", "up")
        run("ip", "-n", host, "address", "add", f"{network}.2/24", "dev", "eth0")
        run("ip", "-n", host, "link", "set", "eth0", "up")
        run("ip", "-n", host, "link", "set", "lo", "up")


async def kill_one_under_load(victim: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Send all requests, half of them as streams; kill the victim when a third is answered."""
    bodies = [
        chat([picture(index)], QUESTIONS[index % len(QUESTIONS)], 24) | {"stream": index % 2 == 0}
        for index in range(DIFFERENT)
    ]
    free, answers, broken = asyncio.Semaphore(AT_ONCE), dict[int, str](), 0
    killed = asyncio.Event()
    async with (
        httpx.AsyncClient(base_url=ROUTER, timeout=60) as front,
        httpx.AsyncClient(base_url=f"http://{HOSTS['a']}.2:8000") as a,
        httpx.AsyncClient(base_url=f"http://{HOSTS['b']}.2:8000") as b,
    ):
        before = {"a": await counters(a), "b": await counters(b)}
        seen_of_victim = before["a"]

        async def ask(index: int) -> None:
            nonlocal broken, seen_of_victim
            async with free:
                if len(answers) >= KILL_AFTER and not killed.is_set():
                    killed.set()
                    seen_of_victim = await counters_now(a)
                    os.killpg(victim.pid, signal.SIGKILL)
                try:
                    answers[index] = await answer(front, bodies[index % DIFFERENT])
                except (httpx.HTTPError, IncompleteStream) as error:
                    assert bodies[index % DIFFERENT]["stream"], (
                        f"The router lost a request that it could have repeated: {error}"
                    )
                    broken += 1
                    answers[index] = await answer(front, bodies[index % DIFFERENT])

        await asyncio.gather(*(ask(index) for index in range(REQUESTS)))
        of_a = finished(seen_of_victim) - finished(before["a"])
        after = await counters(b)
    of_b = finished(after) - finished(before["b"])
    different = {index % DIFFERENT: text for index, text in answers.items()}
    assert all(different[index % DIFFERENT] == text for index, text in answers.items()), "Answers differ."
    assert of_a <= REQUESTS - of_b <= of_a + AT_ONCE, f"{of_a:g} and {of_b:g} of {REQUESTS} were counted."
    assert total(after, "prismoe_tokens_total") == computed_tokens(after), "The experts' counters differ."
    return {
        "requests": REQUESTS,
        "answered": len(answers),
        "streams_broken_and_asked_again": broken,
        "counted_by_the_killed": of_a,
        "counted_by_the_other": of_b,
    }


class IncompleteStream(Exception):
    """A stream that ended before its answer did."""


async def answer(front: httpx.AsyncClient, body: dict[str, Any]) -> str:
    """Send a request, and return the text of its answer."""
    if not body["stream"]:
        plain = {name: value for name, value in body.items() if name != "stream_options"}
        response = await front.post("/v1/chat/completions", json=plain)
        if response.is_error:
            raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
        return str(response.json()["choices"][0]["message"]["content"])
    text = ""
    async with front.stream("POST", "/v1/chat/completions", json=body) as streamed:
        if streamed.is_error:
            raise httpx.HTTPStatusError("refused", request=streamed.request, response=streamed)
        async for line in streamed.aiter_lines():
            if line == "data: [DONE]":
                return text
            if line.startswith("data: {") and (choices := json.loads(line[6:]).get("choices")):
                text += choices[0]["delta"].get("content") or ""
    raise IncompleteStream


@contextmanager
def replica(host: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `prismoe serve` on a host; with two cores or more, each replica has its own core."""
    cores = sorted(os.sched_getaffinity(0))
    core = cores[list(HOSTS).index(host) % len(cores)]
    serve = [sys.executable, "-P", "-m", "prismoe.server.commands.cli", "serve", "--host", f"{HOSTS[host]}.2"]
    options = ["--port", "8000", "--expert-load-interval", "0.2"]
    environment = {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
    with running(["ip", "netns", "exec", host, *serve, *options], log, environment) as process:
        yield process


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the server is healthy. Raises RuntimeError if it ends or takes too long."""
    if not gets_healthy(process, url):
        raise RuntimeError(f"{url} did not become ready:\n{log.read_text(errors='replace')}")


def run(*command: str) -> None:
    """Run a command. Raises an error if it fails."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
