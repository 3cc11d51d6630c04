"""A server's processes, and their memory."""

import psutil

from tests.server.running import Server


def processes(server: Server) -> list[psutil.Process]:
    """The server's process and all of its descendants."""
    server.watch()
    return [psutil.Process(server.process.pid), *(each for each in server.family if each.is_running())]


def resident_bytes(server: Server) -> int:
    """The memory of all of them."""
    return sum(process.memory_info().rss for process in processes(server))
