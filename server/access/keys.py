"""Named API keys, in a file of their SHA-256 digests that is read again when it changes.

A line of the file is `NAME ROLE DIGEST`; text after a # is a comment. A name may have several keys, so that a
new key works before the old one is removed. Keys are long and random, so a digest without a salt is safe.
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

logger = logging.getLogger("vllm.prismoe")

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
DIGEST = re.compile(r"[0-9a-f]{64}")


class Role(StrEnum):
    """Which routes a key opens."""

    CLIENT = "client"
    """All routes but /metrics and the administrator's."""
    METRICS = "metrics"
    """The routes that Prometheus and `prismoe top` read."""
    ADMIN = "admin"
    """All routes, including those that change the routing for all clients."""


@dataclass(frozen=True)
class Key:
    """A key's name, role and SHA-256 digest."""

    name: str
    role: Role
    digest: str

    @classmethod
    def of(cls, name: str, role: Role, secret: str) -> "Key":
        """Return the key of a secret."""
        return cls(name, role, hashlib.sha256(secret.encode()).hexdigest())

    @property
    def line(self) -> str:
        """The key's line in a key file."""
        return f"{self.name} {self.role} {self.digest}"


class Keys(Protocol):
    """A set of keys that can be searched."""

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret; None if no key matches."""


class KeyRing:
    """Keys that don't change."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, compared with all keys, so that the time reveals nothing about it."""
        # Starlette decodes a header's bytes as Latin-1.
        digest = hashlib.sha256(secret.encode("latin-1")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


class KeyFile:
    """The keys of a file. If a changed file can't be read, the keys stay as they are, and the log says so.

    The constructor raises ValueError or OSError if the file can't be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = self._stat()
        self._ring = KeyRing(read_keys(path))

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, in the file's present state."""
        state = self._stat()
        if state != self._state:
            self._state = state
            self._read_again()
        return self._ring.find(secret)

    def _stat(self) -> tuple[int, ...] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def _read_again(self) -> None:
        try:
            keys = read_keys(self._path)
        except ValueError as error:
            logger.error("The key file has changed and can't be used. The keys stay as they are. %s", error)
        except OSError as error:
            logger.error(
                "The key file can't be read. The keys stay as they are; the next request reads it again. %s",
                error,
            )
            self._state = None
        else:
            self._ring = KeyRing(keys)
            logger.info("Read %d keys from %s.", len(keys), self._path)


class BothKeys:
    """The keys of two places."""

    def __init__(self, first: Keys, second: Keys) -> None:
        self._first, self._second = first, second

    def find(self, secret: str) -> Key | None:
        """Return the key of a secret, from either place."""
        return self._first.find(secret) or self._second.find(secret)


def read_keys(path: Path) -> tuple[Key, ...]:
    """Return a file's keys. Raises ValueError with a sentence if a line is not a key or there are no keys."""
    keys = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or not NAME.fullmatch(words[0]) or not DIGEST.fullmatch(words[2]):
            raise ValueError(
                f"Line {number} of {path} is not a key: write NAME ROLE SHA256, like `prismoe key NAME FILE`."
            )
        if words[1] not in tuple(Role):
            raise ValueError(f"Line {number} of {path} has an unknown role: write {' or '.join(Role)}.")
        keys.append(Key(words[0], Role(words[1]), words[2]))
    if not keys:
        raise ValueError(f"{path} has no keys: add one with `prismoe key NAME {path}`.")
    return tuple(keys)


def add_key(path: Path, name: str, role: Role) -> str:
    """Add a new key to a file and return its secret. If the file is new, only its owner can read it.

    Raises ValueError if the name is not valid.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a key: use up to 64 letters, digits and . _ @ -")
    secret = secrets.token_urlsafe(32)
    path.touch(0o600)
    ends_a_line = path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as keys:
        keys.write(("" if ends_a_line else "\n") + Key.of(name, role, secret).line + "\n")
    return secret
