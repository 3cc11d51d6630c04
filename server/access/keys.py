"""Keys with names: a file of their SHA-256 digests, read again when it changes.

A line of the file is `NAME ROLE DIGEST`; what follows a # is a comment. A name may have several keys, so that
a new one works before the old one goes. Keys are long and random, so nobody finds one by its plain digest.
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
    """What a key opens."""

    CLIENT = "client"
    """All but /metrics and what an administrator does."""
    METRICS = "metrics"
    """What Prometheus and `prismoe top` read."""
    ADMIN = "admin"
    """Everything, and what changes how all are served."""


@dataclass(frozen=True)
class Key:
    """A key, known by its digest."""

    name: str
    role: Role
    digest: str

    @classmethod
    def of(cls, name: str, role: Role, secret: str) -> "Key":
        """The key that `secret` opens."""
        return cls(name, role, hashlib.sha256(secret.encode()).hexdigest())

    @property
    def line(self) -> str:
        """As it stands in a file."""
        return f"{self.name} {self.role} {self.digest}"


class Keys(Protocol):
    """Where keys are looked up."""

    def find(self, secret: str) -> Key | None:
        """The key that `secret` opens, None where there is none."""


class KeyRing:
    """Keys that stay as they are."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys = tuple(keys)

    def find(self, secret: str) -> Key | None:
        """The key that `secret` opens, found in a time that doesn't depend on it."""
        # A header's bytes come as Latin-1.
        digest = hashlib.sha256(secret.encode("latin-1")).hexdigest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


class KeyFile:
    """The keys of a file. A change that can't be read leaves the keys as they were, and is told in the log.

    Raises ValueError or OSError where the file can't be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = self._stat()
        self._ring = KeyRing(read_keys(path))

    def find(self, secret: str) -> Key | None:
        """The key that `secret` opens now."""
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
            logger.error("The keys stay as they were: %s", error)
        except OSError as error:
            logger.error("The keys stay as they were, and are read again: %s", error)
            self._state = None
        else:
            self._ring = KeyRing(keys)
            logger.info("Read %d keys from %s.", len(keys), self._path)


class BothKeys:
    """Keys of two places."""

    def __init__(self, first: Keys, second: Keys) -> None:
        self._first, self._second = first, second

    def find(self, secret: str) -> Key | None:
        """The key that `secret` opens in either."""
        return self._first.find(secret) or self._second.find(secret)


def read_keys(path: Path) -> tuple[Key, ...]:
    """A file's keys. Raises ValueError with a sentence where a line is none or there are none."""
    keys = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or not NAME.fullmatch(words[0]) or not DIGEST.fullmatch(words[2]):
            raise ValueError(
                f"Line {number} of {path} is no key: write NAME ROLE SHA256, as `prismoe key NAME FILE` does."
            )
        if words[1] not in tuple(Role):
            raise ValueError(f"Line {number} of {path} has no role: it is {' or '.join(Role)}.")
        keys.append(Key(words[0], Role(words[1]), words[2]))
    if not keys:
        raise ValueError(f"{path} holds no keys: add one with `prismoe key NAME {path}`.")
    return tuple(keys)


def add_key(path: Path, name: str, role: Role) -> str:
    """Add a new key to a file, which only its owner can read if it is new; the key."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} can't name a key: use up to 64 letters, digits and . _ @ -")
    secret = secrets.token_urlsafe(32)
    path.touch(0o600)
    ends_a_line = path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a") as keys:
        keys.write(("" if ends_a_line else "\n") + Key.of(name, role, secret).line + "\n")
    return secret
