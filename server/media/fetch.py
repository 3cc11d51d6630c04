"""Fetches media from web servers, within limits on addresses, size and time."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from http import HTTPStatus

import aiohttp
from yarl import URL

from prismoe.server.media.addresses import Network, may_fetch_from
from prismoe.server.media.refusal import MediaRefused

CHUNK_BYTES = 64 * 1024
HEADERS = {"User-Agent": "prismoe", "Accept-Encoding": "identity"}


async def fetch(
    url: URL,
    take: Callable[[int], None],
    *,
    accept: str,
    max_bytes: int,
    timeout_s: float,
    networks: Sequence[Network] = (),
) -> bytes:
    """Return the body at `url`. The size of each piece is passed to `take` before the piece is kept.

    Raises MediaRefused, with a reason that names no address and no part of the answer. Errors of `take` are
    raised, too.

    Every address is checked when its socket is created. So a host name that resolves to several addresses, or
    to another one the second time, can't avoid the check. Redirects are refused. No proxy, cookie or saved
    password is used.
    """

    def checked_socket(address: tuple[int, int, int, str, tuple[str, int]]) -> socket.socket:
        family, kind, protocol, _, where = address
        if not may_fetch_from(where[0], networks):
            raise MediaRefused("its server's address is not public, and not in a network of --fetch-networks")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        socket_factory=checked_socket,
        resolver=aiohttp.ThreadedResolver(),
        use_dns_cache=False,
        force_close=True,
        # So aiohttp tries one address after the other, and an error of checked_socket ends the attempt.
        happy_eyeballs_delay=None,
    )
    try:
        async with (
            asyncio.timeout(timeout_s),
            aiohttp.ClientSession(
                connector=connector,
                headers=HEADERS | {"Accept": accept},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return await _body(answer, take, max_bytes)
    except TimeoutError as error:
        raise MediaRefused(f"fetching it took longer than {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise MediaRefused("its server can't be reached, or did not answer as a web server does") from error


async def _body(answer: aiohttp.ClientResponse, take: Callable[[int], None], max_bytes: int) -> bytes:
    if 300 <= answer.status < 400:
        raise MediaRefused("its URL redirects to another: give the URL that it redirects to")
    if answer.status != HTTPStatus.OK:
        raise MediaRefused(f"its server answered with status {answer.status}")
    body = bytearray()
    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
        take(len(chunk))
        body += chunk
        if len(body) > max_bytes:
            raise MediaRefused(f"it has more than {max_bytes:,} bytes")
    return bytes(body)
