"""Encrypted files: what is changed, cut, moved or exchanged doesn't decrypt."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from credit_mongo.maintenance.backup.encryption import Decryption, Encryption, Key

CHUNK = 65_536 + 16
KEY = Key(bytes(31) + b"\x07")


def encrypted(data: bytes, name: str = "backup/file", pieces: int = 1) -> bytes:
    """Encrypt data in some pieces."""
    work = Encryption(KEY, name)
    size = len(data) // pieces + 1
    parts = [work.add(data[n : n + size]) for n in range(0, len(data), size)]
    return b"".join([*parts, work.end()])


def decrypted(data: bytes, name: str = "backup/file", key: Key = KEY, size: int = 1000) -> bytes:
    """Decrypt data in pieces."""
    work = Decryption(key, name)
    parts = [work.add(data[n : n + size]) for n in range(0, len(data), size)]
    return b"".join([*parts, work.end()])


@pytest.mark.parametrize("length", [0, 1, 65_535, 65_536, 65_537, 131_072, 200_001])
def test_what_was_encrypted_is_decrypted(length: int) -> None:
    """In whatever pieces it comes, at the borders of chunks, too."""
    data = Random(length).randbytes(length)
    for pieces in (1, 3, 7):
        stored = encrypted(data, pieces=pieces)
        assert decrypted(stored, size=1 + length // 3) == data
    assert encrypted(data) != encrypted(data)


def test_anything_else_is_refused() -> None:
    """A changed bit, a cut at any place, chunks that are exchanged, removed, added or repeated."""
    data = Random(1).randbytes(200_000)
    stored = encrypted(data)
    header, chunks = stored[:24], [stored[n : n + CHUNK] for n in range(24, len(stored), CHUNK)]
    assert len(chunks) == 4
    wrong = [
        header + b"".join(chunks[:-1]),
        header + b"".join(chunks[1:]),
        header + b"".join([chunks[1], chunks[0], *chunks[2:]]),
        header + b"".join([*chunks, chunks[-1]]),
        header + b"".join([chunks[0], *chunks]),
        *(stored[:n] for n in (0, 5, 24, 25, 24 + CHUNK, 24 + CHUNK + 1, len(stored) - 1)),
        b"x" + stored[1:],
    ]
    random = Random(2)
    for _ in range(50):
        changed = bytearray(stored)
        changed[random.randrange(len(stored))] ^= 1 << random.randrange(8)
        wrong.append(bytes(changed))
    for each in wrong:
        with pytest.raises(ValueError, match=r"was changed|ends too soon|is not encrypted"):
            decrypted(each, size=50_000)


def test_files_are_bound_to_their_name_and_their_key() -> None:
    """One file of a backup in place of another doesn't decrypt."""
    stored = encrypted(b"data")
    for name, key in (("backup/other", KEY), ("backup/file", Key(bytes(32)))):
        with pytest.raises(ValueError, match="was changed, or encrypted with another key"):
            decrypted(stored, name, key)


def test_a_key_shows_nothing(tmp_path: Path) -> None:
    """Not in its repr, which tracebacks may have."""
    file = tmp_path / "key"
    file.write_text("ab" * 32)
    assert repr(Key.read("key_file", file)) == "Key()"
