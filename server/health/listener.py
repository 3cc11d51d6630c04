"""The socket that the server listens on. It listens as soon as it is bound, so that a second server can't."""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from vllm.entrypoints.launchers.launcher import setup_server

from prismoe.server.errors import StartRefused

BACKLOG = 2048
PROBE_S = 1


@contextlib.contextmanager
def listening(args: Namespace) -> Iterator[socket.socket]:
    """A socket that listens where vLLM's options say; a Unix socket's file goes when the block ends.

    Raises StartRefused where that is not possible, such as where another server listens.
    """
    path = Path(args.uds) if args.uds else None
    with _sentences(args), _alone(path):
        if path is not None:
            _remove_stale(path)
        listener: socket.socket = setup_server(args, reuse_port=False)[1]
        listener.listen(BACKLOG)
        file = _file(path)
    try:
        yield listener
    finally:
        with contextlib.suppress(OSError), _alone(path):
            if path is not None and file == _file(path):
                path.unlink()
        listener.close()


def url_of(listener: socket.socket, args: Namespace) -> str:
    """Where a client on this machine reaches the server."""
    if args.uds:
        return f"unix:{args.uds}"
    scheme = "https" if args.ssl_certfile else "http"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{host}:{port}"


@contextlib.contextmanager
def _sentences(args: Namespace) -> Iterator[None]:
    try:
        yield
    except KeyError as error:  # as vLLM refuses the name of a parser
        raise StartRefused(str(error.args[0])) from error
    except (OSError, ValueError) as error:
        where, option = f"port {args.port}", "--port"
        if args.uds:
            where, option = args.uds, "--uds"
        elif args.host and getattr(error, "errno", None) not in (errno.EADDRINUSE, errno.EACCES):
            where, option = f"{args.host}, {where}", "--host"
        why = getattr(error, "strerror", None) or error
        raise StartRefused(f"Can't listen on {where}: {why}. Choose another with {option}.") from error


@contextlib.contextmanager
def _alone(path: Path | None) -> Iterator[None]:
    """While the block lasts, no other server removes or makes a socket in this one's folder."""
    if path is None:
        yield
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that was killed. Another file, or one that somebody hears, stays."""
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError:
            return  # Somebody holds it, as far as can be told; binding says what is wrong.


def _file(path: Path | None) -> tuple[int, ...] | None:
    """What tells this file from a later one of its name."""
    if path is None:
        return None
    state = path.lstat()
    return state.st_dev, state.st_ino, state.st_mtime_ns
