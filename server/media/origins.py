"""Checks that a URL is one of a web server that media may come from (`--allowed-media-domains`).

The connection uses the same parsed URL that is checked here, so no second parser can read it differently
(CVE-2026-24779).
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from yarl import URL

from prismoe.server.media.refusal import MediaRefused

ANY_HOST = "*"
PORTS = {"https": 443, "http": 80}
OPTION = "--allowed-media-domains"

ENTRY = re.compile(r"(?:(https?)://)?(\*|[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?/?", re.IGNORECASE)


class Origin(NamedTuple):
    """A web server."""

    scheme: str
    host: str
    port: int


def origin(entry: str) -> Origin:
    """Return the server of one entry of the option: `host`, `host:port` or `http://host`; `*` is any host.

    Raises ValueError with a sentence.
    """
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(
            f"{OPTION}: {entry!r} is not a host: write, for example, images.example.com, "
            f"images.example.com:8443, http://images.example.com or {ANY_HOST} (any public host)."
        )
    scheme, host, port = match.groups()
    scheme = (scheme or "https").lower()
    return Origin(scheme, host.lower().strip("[]"), int(port or PORTS[scheme]))


class AllowedOrigins:
    """The servers that the operator allows. Without the option there are none."""

    def __init__(self, entries: Iterable[str] | None) -> None:
        self._origins = {origin(entry) for entry in entries or ()}

    def checked(self, url: str) -> URL:
        """Return the parsed URL if its server is allowed. Raises MediaRefused otherwise."""
        if not self._origins:
            raise MediaRefused(
                f"this server fetches nothing, because {OPTION} is not set: send it as a data URL"
            )
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise MediaRefused("its URL has spaces, backslashes or other characters: percent-encode them")
        try:
            parsed = URL(url)
            named = Origin(parsed.scheme, (parsed.raw_host or "").lower(), parsed.port or 0)
        except ValueError as error:
            raise MediaRefused("its URL is not valid") from error
        if parsed.raw_user is not None or parsed.raw_password is not None:
            raise MediaRefused("its URL has a user name or password: leave it out")
        anywhere = Origin(named.scheme, ANY_HOST, named.port)
        if not named.host or not {named, anywhere} & self._origins:
            raise MediaRefused(f"its server is not one that {OPTION} allows")
        return parsed
