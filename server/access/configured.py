"""The keys that the operator configures: those of the key file and those of vLLM's --api-key."""

import ipaddress
import logging
from collections.abc import Sequence

from prismoe.server.access.keys import BothKeys, Key, KeyFile, KeyRing, Keys, Role
from prismoe.server.access.settings import AccessSettings

logger = logging.getLogger("vllm.prismoe")


def configured_keys(settings: AccessSettings, secrets: Sequence[str], host: str | None) -> Keys | None:
    """Return the keys of the key file and of `secrets`, the values of vLLM's --api-key.

    Returns None if there are no keys, and logs a warning then, unless `host` is a loopback address. Raises
    ValueError with a sentence if the file can't be read.
    """
    from_option = KeyRing(Key.of("api-key", Role.CLIENT, secret) for secret in secrets)
    if settings.api_keys_file is not None:
        try:
            from_file = KeyFile(settings.api_keys_file)
        except (ValueError, OSError) as error:
            raise ValueError(f"--api-keys-file: {error}") from error
        return BothKeys(from_file, from_option) if secrets else from_file
    if secrets:
        return from_option
    if not _is_loopback(host):
        logger.warning(
            "This server has no keys: everybody who can reach %s may use it. Name a file of keys with "
            "--api-keys-file.",
            host or "this machine",
        )
    return None


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
