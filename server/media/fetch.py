"""Fetches media from a web server: from the addresses that are allowed, no further, no more, no longer."""

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
    """The body at `url`, whose bytes are counted with `take` as they come, before they are kept.

    Raises MediaRefused, whose reason names no address and no part of the answer, and what `take` raises.

    Every address is checked as its socket is made, so a name that resolves otherwise the second time, or to
    several addresses, gains nothing. Redirects are refused. No proxy, cookie or saved password is used.
    """

    def checked_socket(address: tuple[int, int, int, str, tuple[str, int]]) -> socket.socket:
        family, kind, protocol, _, where = address
        if not may_fetch_from(where[0], networks):
            raise MediaRefused("its server has an address that media may not be fetched from")
        return socket.socket(family, kind, protocol)

    connector = aiohttp.TCPConnector(
        socket_factory=checked_socket,
        resolver=aiohttp.ThreadedResolver(),
        use_dns_cache=False,
        force_close=True,
        # One address after the other: what checked_socket raises ends the attempt at once.
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
        raise MediaRefused(f"its server took longer than {timeout_s:g} s") from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise MediaRefused("its server can't be reached, or did not answer as a web server does") from error


async def _body(answer: aiohttp.ClientResponse, take: Callable[[int], None], max_bytes: int) -> bytes:
    if 300 <= answer.status < 400:
        raise MediaRefused("its URL redirects: give the address that it leads to")
    if answer.status != HTTPStatus.OK:
        raise MediaRefused(f"its server answered with status {answer.status}")
    body = bytearray()
    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
        take(len(chunk))
        body += chunk
        if len(body) > max_bytes:
            raise MediaRefused(f"it has more than {max_bytes:,} bytes")
    return bytes(body)
