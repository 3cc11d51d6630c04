"""The socket that the server listens on. It listens as soon as it is bound, so that no second server can."""

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
    """Yield a socket that listens on the address in vLLM's options, and close it when the block ends.

    The file of a Unix socket is removed then. Raises StartRefused if nothing can listen there, for example
    because another server does.
    """
    path = Path(args.uds) if args.uds else None
    with _start_refused(args), _folder_locked(path):
        if path is not None:
            _remove_stale(path)
        listener: socket.socket = setup_server(args, reuse_port=False)[1]
        listener.listen(BACKLOG)
        file = _identity(path)
    try:
        yield listener
    finally:
        with contextlib.suppress(OSError), _folder_locked(path):
            if path is not None and file == _identity(path):
                path.unlink()
        listener.close()


def url_of(listener: socket.socket, args: Namespace) -> str:
    """Return the URL at which a client on this machine reaches the server."""
    if args.uds:
        return f"unix:{args.uds}"
    scheme = "https" if args.ssl_certfile else "http"
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"{scheme}://{host}:{port}"


@contextlib.contextmanager
def _start_refused(args: Namespace) -> Iterator[None]:
    """Raise StartRefused with a sentence for an error in the block."""
    try:
        yield
    except KeyError as error:  # vLLM refuses an unknown name of a parser with it.
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
def _folder_locked(path: Path | None) -> Iterator[None]:
    """Lock the folder of a Unix socket during the block, so that no other server changes its sockets."""
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
    """Remove the socket of a server that was killed. Leave any other file, and a socket that is in use."""
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError:
            return  # The socket may be in use. Binding it raises the error that the user sees.


def _identity(path: Path | None) -> tuple[int, ...] | None:
    """Return numbers that identify this file among files of the same name."""
    if path is None:
        return None
    state = path.lstat()
    return state.st_dev, state.st_ino, state.st_mtime_ns
