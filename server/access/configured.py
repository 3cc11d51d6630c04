"""The keys that the settings name, from all places."""

import ipaddress
import logging
from collections.abc import Sequence

from prismoe.server.access.keys import BothKeys, Key, KeyFile, KeyRing, Keys, Role
from prismoe.server.access.settings import AccessSettings

logger = logging.getLogger("vllm.prismoe")


def configured_keys(settings: AccessSettings, secrets: Sequence[str], host: str | None) -> Keys | None:
    """The keys of the file and the `secrets` of vLLM's --api-key; None, with a warning, where there are none.

    Raises ValueError with a sentence where the file can't be read.
    """
    given = KeyRing(Key.of("api-key", Role.CLIENT, secret) for secret in secrets)
    if settings.api_keys_file is not None:
        try:
            in_file = KeyFile(settings.api_keys_file)
        except (ValueError, OSError) as error:
            raise ValueError(f"--api-keys-file: {error}") from error
        return BothKeys(in_file, given) if secrets else in_file
    if secrets:
        return given
    if not _is_loopback(host):
        logger.warning(
            "There are no keys: whoever reaches %s may use this server. Name a file of keys with "
            "--api-keys-file.",
            host or "this machine",
        )
    return None


def _is_loopback(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
