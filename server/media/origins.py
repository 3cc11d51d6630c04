"""The web servers that media may come from (`--allowed-media-domains`), and which of them a URL names.

The URL that is checked here is the parsed one that the connection is made with, so there is no second parser
to disagree (CVE-2026-24779).
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
    """The server of one entry of the option: `host`, `host:port` or `http://host`, where `*` is any host."""
    match = ENTRY.fullmatch(entry)
    if match is None:
        raise ValueError(
            f"{OPTION}: {entry!r} is not a host. Examples: images.example.com, images.example.com:8443, "
            f"http://images.example.com, {ANY_HOST} (any public host)."
        )
    scheme, host, port = match.groups()
    scheme = (scheme or "https").lower()
    return Origin(scheme, host.lower().strip("[]"), int(port or PORTS[scheme]))


class AllowedOrigins:
    """The servers that the operator allows; none where the option is not given."""

    def __init__(self, entries: Iterable[str] | None) -> None:
        self._origins = {origin(entry) for entry in entries or ()}

    def checked(self, url: str) -> URL:
        """The URL, parsed, of an allowed server. Raises MediaRefused."""
        if not self._origins:
            raise MediaRefused(
                f"this server fetches nothing, because {OPTION} is not set: send it as a data URL"
            )
        if not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
            raise MediaRefused("its URL has spaces, backslashes or other characters to percent-encode")
        try:
            parsed = URL(url)
            named = Origin(parsed.scheme, (parsed.raw_host or "").lower(), parsed.port or 0)
        except ValueError as error:
            raise MediaRefused("its URL is not one") from error
        if parsed.raw_user is not None or parsed.raw_password is not None:
            raise MediaRefused("its URL names a user, and no server is given one")
        anywhere = Origin(named.scheme, ANY_HOST, named.port)
        if not named.host or not {named, anywhere} & self._origins:
            raise MediaRefused(f"its URL is not of a server that {OPTION} allows")
        return parsed
