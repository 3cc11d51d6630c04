"""Keys: their file, their rotation, and the messages for a wrong file."""

import stat
from pathlib import Path

import pytest

from prismoe.server.access.keys import Key, KeyFile, KeyRing, Role, add_key, read_keys
from prismoe.server.commands.cli import main


def test_a_new_key_is_recognised_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    assert main(["key", "alice", str(file)]) == 0
    secret = capsys.readouterr().out.strip()
    assert main(["key", "prometheus", str(file), "--role", "metrics"]) == 0
    keys = KeyFile(file)
    found = keys.find(secret)
    assert found is not None and (found.name, found.role) == ("alice", Role.CLIENT)
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_unknown_role_is_refused_with_the_roles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["key", "alice", str(tmp_path / "keys"), "--role", "root"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert "invalid choice: 'root'" in error and all(role.value in error for role in Role)
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("end", ["", "\n", "  # a laptop", "\n# the end"])
def test_a_key_gets_its_own_line(tmp_path: Path, end: str) -> None:
    file = tmp_path / "keys"
    file.write_text(Key.of("alice", Role.CLIENT, "hers").line + end)
    secret = add_key(file, "bob", Role.CLIENT)
    keys = KeyFile(file)
    assert [found.name for found in (keys.find("hers"), keys.find(secret)) if found] == ["alice", "bob"]


def test_an_unreadable_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    secret, other = add_key(file, "alice", Role.CLIENT), add_key(file, "bob", Role.CLIENT)
    keys = KeyFile(file)
    file.write_text(Key.of("bob", Role.CLIENT, other).line + "\n")
    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(OSError("too many files")))
        assert keys.find(secret) is not None
    assert keys.find(secret) is None and keys.find(other) is not None


def test_a_text_that_is_not_a_key_is_refused(tmp_path: Path) -> None:
    secret = add_key(tmp_path / "keys", "alice", Role.CLIENT)
    keys = KeyFile(tmp_path / "keys")
    digest = Key.of("", Role.CLIENT, secret).digest
    for guess in ("", " ", secret[:-1], secret + " ", secret.swapcase(), digest, "\xff", "ÿ" * 9):
        assert keys.find(guess) is None


def test_a_key_beyond_ascii_is_found_by_the_headers_bytes() -> None:
    ring = KeyRing([Key.of("alice", Role.CLIENT, "schlüssel")])
    assert ring.find("schlüssel".encode().decode("latin-1")) is not None


def test_a_change_of_the_file_takes_effect_at_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    old = add_key(file, "alice", Role.CLIENT)
    keys = KeyFile(file)
    new = add_key(file, "alice", Role.CLIENT)
    assert keys.find(old) and keys.find(new)
    # Kubernetes replaces the file with another one.
    other = tmp_path / "other"
    other.write_text(file.read_text().splitlines()[1] + "\n")
    other.replace(file)
    assert keys.find(old) is None and keys.find(new)
    for fault in (lambda: file.write_text("nonsense\n"), file.unlink):
        fault()
        assert keys.find(old) is None and keys.find(new)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no keys: add one with `prismoe key NAME "),
        ("# nobody yet\n\n", "has no keys"),
        ("alice\n", "Line 1 of "),
        (f"\nalice root {'0' * 64}\n", "Line 2 of .* has an unknown role: write client or metrics or admin"),
        (f"al/ice client {'0' * 64}", "is not a key: write NAME ROLE SHA256"),
        (f"alice client {'0' * 63}", "is not a key"),
        (f"alice client {'0' * 64} more", "is not a key"),
    ],
)
def test_a_wrong_file_is_refused_with_a_message(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_keys(tmp_path / "keys")


def test_a_wrong_name_is_refused_with_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "a b", str(tmp_path / "keys")]) == 1
    assert "can't name a key" in capsys.readouterr().err
    assert not (tmp_path / "keys").exists()
