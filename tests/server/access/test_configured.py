"""The keys of a server, and its warning if it has none."""

import logging
from pathlib import Path

import pytest

from prismoe.server.access.configured import configured_keys
from prismoe.server.access.keys import Role, add_key
from prismoe.server.access.settings import AccessSettings

OPEN = AccessSettings()


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    written: list[logging.LogRecord] = []
    caplog.set_level(logging.WARNING, "vllm.prismoe")
    monkeypatch.setattr(logging.getLogger("vllm.prismoe"), "handle", written.append)
    return written


@pytest.mark.parametrize("host", [None, "0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_a_server_without_keys_warns_once_if_other_hosts_reach_it(
    warnings: list[logging.LogRecord], host: str | None
) -> None:
    assert configured_keys(OPEN, [], host) is None
    [warning] = warnings
    assert warning.getMessage().startswith("This server has no keys: everybody who can reach ")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_server_for_this_machine_only_does_not_warn(warnings: list[logging.LogRecord], host: str) -> None:
    assert configured_keys(OPEN, [], host) is None
    assert warnings == []


def test_keys_of_vllms_option_and_of_the_file_are_both_accepted(
    tmp_path: Path, warnings: list[logging.LogRecord]
) -> None:
    in_file = add_key(tmp_path / "keys", "alice", Role.METRICS)
    keys = configured_keys(AccessSettings(api_keys_file=tmp_path / "keys"), ["given"], None)
    assert keys is not None
    names = [(key.name, key.role) for key in map(keys.find, [in_file, "given"]) if key]
    assert names == [("alice", Role.METRICS), ("api-key", Role.CLIENT)]
    alone = configured_keys(OPEN, ["given"], None)
    assert alone is not None and alone.find("given") and not alone.find(in_file)
    assert warnings == []


@pytest.mark.parametrize("content", [None, "", "nonsense"])
def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    with pytest.raises(ValueError, match="--api-keys-file: "):
        configured_keys(AccessSettings(api_keys_file=tmp_path / "keys"), ["given"], None)
