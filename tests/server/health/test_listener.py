"""The addresses of a server, and the message for a second server."""

import os
import socket
from pathlib import Path
from threading import Barrier, Thread

import pytest

from prismoe.server.errors import StartRefused
from prismoe.server.health.listener import listening, url_of
from tests.server.health.options import options

LIMIT_S = 10


def free_port(host: str = "127.0.0.1") -> int:
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])


def hears(path: Path) -> bool:
    """Whether a process listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(LIMIT_S)
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("--host", "127.0.0.1"), ("--host", "127.0.0.1")),
        ((), ("--host", "127.0.0.1")),
        (("--host", "127.0.0.1"), ()),
        (("--host", "0.0.0.0"), ("--host", "localhost")),
        (("--host", "::1"), ("--host", "::1")),
        (("--host", "::"), ("--host", "127.0.0.1")),
    ],
)
def test_a_second_server_on_a_port_is_refused_at_once(
    first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    port = str(free_port())
    with listening(options(*first, "--port", port)) as listener:
        with (
            pytest.raises(StartRefused, match=rf"^Can't listen on port {port}: .*in use.*--port\.$"),
            listening(options(*second, "--port", port)),
        ):
            pass
        family = socket.AF_INET6 if "::1" in first else socket.AF_INET
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with socket.socket(family) as client:
            client.settimeout(LIMIT_S)
            client.connect((host, int(port)))
            listener.settimeout(LIMIT_S)
            listener.accept()[0].close()


def test_a_port_is_free_again_at_once() -> None:
    arguments = ("--host", "127.0.0.1", "--port", str(free_port()))
    for _ in range(2):
        with listening(options(*arguments)) as listener:
            client = socket.create_connection(listener.getsockname(), LIMIT_S)
            # The server closes first, so that its address stays in TIME_WAIT.
            listener.accept()[0].close()
            client.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--host", "203.0.113.7"), r"^Can't listen on 203\.0\.113\.7, port 8000: .*--host\.$"),
        (("--host", "a..b"), r"^Can't listen on a\.\.b, port 8000: .*--host\.$"),
        (("--uds", "/no/such/folder/s"), r"^Can't listen on /no/such/folder/s: No such file.*--uds\.$"),
        (("--uds", "/tmp/" + "x" * 200), r"^Can't listen on /tmp/x+: .*too long.*--uds\.$"),
    ],
)
def test_an_impossible_address_is_refused_with_a_message(arguments: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(StartRefused, match=sentence), listening(options(*arguments)):
        pass


def test_an_unknown_tool_parser_is_refused_with_a_message() -> None:
    arguments = ("--port", str(free_port()), "--enable-auto-tool-choice", "--tool-call-parser", "mine")
    with (
        pytest.raises(StartRefused, match=r"^invalid tool call parser: mine"),
        listening(options(*arguments)),
    ):
        pass


def test_a_unix_socket_with_a_listener_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(options("--uds", str(path))) as listener:
        with (
            pytest.raises(StartRefused, match=r"^Can't listen on .*/s: .*in use.*--uds\.$"),
            listening(options("--uds", str(path))),
        ):
            pass
        assert hears(path)
        listener.accept()[0].close()
    assert not path.exists()


def test_an_abandoned_unix_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    assert path.exists() and not hears(path)
    with listening(options("--uds", str(path))):
        assert hears(path)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "link", "queue"])
def test_other_files_are_not_replaced(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(StartRefused, match="in use"), listening(options("--uds", str(path))):
        pass
    assert os.path.lexists(path)
    assert kind != "file" or path.read_text() == "precious"


def test_a_socket_of_another_server_under_the_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as other:
        with listening(options("--uds", str(path))):
            path.unlink()
            other.bind(str(path))
            other.listen()
        assert hears(path)


def test_of_many_that_start_at_once_one_gets_the_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(path))
        together, over = Barrier(4), Barrier(5)
        won: list[bool] = []

        def start(together: Barrier = together, over: Barrier = over, won: list[bool] = won) -> None:
            together.wait(LIMIT_S)
            try:
                with listening(options("--uds", str(path))):
                    won.append(hears(path))
                    over.wait(LIMIT_S)
            except StartRefused:
                over.wait(LIMIT_S)

        threads = [Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        over.wait(LIMIT_S)
        for thread in threads:
            thread.join(LIMIT_S)
        assert won == [True]


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1"), ("0.0.0.0", "http://127.0.0.1"), ("::1", "http://[::1]")],
)
def test_the_url_can_be_reached_from_this_machine(host: str, url: str) -> None:
    args = options("--host", host, "--port", str(free_port(host)))
    with listening(args) as listener:
        assert url_of(listener, args) == f"{url}:{args.port}"


def test_the_url_of_a_unix_socket_is_its_path(tmp_path: Path) -> None:
    args = options("--uds", str(tmp_path / "socket"))
    with listening(args) as listener:
        assert url_of(listener, args) == f"unix:{tmp_path / 'socket'}"
