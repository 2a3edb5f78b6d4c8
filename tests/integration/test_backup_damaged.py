"""A damaged backup is told in one line. It stops no other, and hides none."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from credit_mongo import BackupError, CreditLedger
from credit_mongo.maintenance.backup.making import make_backup
from credit_mongo.maintenance.backup.places import Place
from credit_mongo.maintenance.backup.restoring import restore
from tests.integration.backups import PRICES, chain, contents, copy, empty_database, use
from tests.integration.commands import run, where
from tests.integration.promises import Client, Database

__all__ = ["chain", "copy"]


def manifests_of(place: Path) -> list[Path]:
    """Return the files of the manifests, the oldest first."""
    order = {file: json.loads(file.read_text())["end"] for file in place.glob("*/manifest.json")}
    return sorted(order, key=lambda file: order[file])


def change_a_byte(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b'"number":', b'"nunber":'))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:100])


def write_nonsense(file: Path) -> None:
    file.write_bytes(b"[" * 100_000)


def make_a_directory_of_it(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("damage", [change_a_byte, cut, write_nonsense, make_a_directory_of_it])
async def test_backups_go_on_beside_a_damaged_one(
    client: Client,
    replica_set_uri: str,
    chain: tuple[Database, Path],
    copy: Path,
    damage: Callable[[Path], None],
) -> None:
    """The next increment follows the newest backup that can be restored, and nothing is lost."""
    database, (full, middle, _) = chain[0], manifests_of(copy)
    damage(middle)
    async with CreditLedger(database, PRICES) as ledger:
        await use(ledger)
    here = where(replica_set_uri, database)
    code, output, errors = await run("backup", str(copy), "--incremental", "--json", *here)
    made = json.loads(output)
    assert (code, errors.count("\n")) == (0, 1)
    assert errors.startswith(f"warning: {middle.parent.name}: ")
    assert "manifest" in errors
    assert made["broken"] == [errors.removeprefix("warning: ").rstrip("\n")]
    assert predecessor_of(copy / made["name"]) == full.parent.name
    async with empty_database(client) as other:
        code, output, errors = await run("restore", str(copy), *where(replica_set_uri, other))
        assert (code, errors) == (0, f"warning: {made['broken'][0]}\n")
        assert await contents(other) == await contents(database)


async def test_a_damaged_last_backup_is_not_passed_over(
    client: Client, replica_set_uri: str, chain: tuple[Database, Path], copy: Path
) -> None:
    """A restore without it is somebody's decision. The refusal says how to make it."""
    last = manifests_of(copy)[-1]
    cut(last)
    async with empty_database(client) as other:
        there = where(replica_set_uri, other)
        code, output, errors = await run("restore", str(copy), *there)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert errors.startswith(f"error: {last.parent.name}: its manifest can't be read: ")
        moment = errors.rstrip("\n").rpartition(" --to ")[2]
        code, output, errors = await run("restore", str(copy), "--to", moment, "--json", *there)
        told = json.loads(output)
        assert (code, len(told["backups"]), errors.count("\n")) == (0, 2, 1)
        assert told["verification"]["findings_total"] == 0
    code, output, errors = await run(
        "backup", "verify", str(copy), *where(replica_set_uri, chain[0])
    )
    assert (code, output, errors.count("\n")) == (2, "", 1)


async def test_a_full_backup_is_made_where_all_others_are_damaged(
    chain: tuple[Database, Path], replica_set_uri: str, copy: Path
) -> None:
    """An incremental one is refused: there is nothing that it could follow."""
    files = manifests_of(copy)
    for file in files:
        cut(file)
    here = where(replica_set_uri, chain[0])
    code, output, errors = await run("backup", str(copy), "--incremental", *here)
    assert (code, output, errors.count("\n")) == (2, "", 1)
    assert f"to follow ({files[0].parent.name}: its manifest can't be read" in errors
    assert "make a full backup first" in errors
    code, output, errors = await run("backup", str(copy), "--keep", "0h", *here)
    assert (code, errors.count("\n")) == (0, 3)
    assert "removed" not in output
    assert all(file.exists() for file in files)


async def test_an_increment_never_follows_what_cannot_be_restored(
    client: Client, chain: tuple[Database, Path], copy: Path
) -> None:
    """A backup in the middle was deleted, say by hand. The chain goes on from before the gap."""
    _, middle, last = manifests_of(copy)
    shutil.rmtree(middle.parent)
    made = await make_backup(chain[0], copy, incremental=True)
    assert [each.partition(": ")[0] for each in made.broken] == [last.parent.name]
    async with empty_database(client) as other:
        restored = await restore(other, copy)
        assert restored.backups[-1] == made.name
        assert await contents(other) == await contents(chain[0])


async def test_a_place_that_cannot_be_read_is_not_an_empty_one(
    chain: tuple[Database, Path], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that doesn't answer says nothing about its backups."""

    def fail(*_: object) -> bytes:
        raise BackupError("", "the store can't be used")

    monkeypatch.setattr("credit_mongo.maintenance.backup.places.Place.manifest_of", fail)
    for incremental in (False, True):
        with pytest.raises(BackupError, match="the store can't be used"):
            await make_backup(chain[0], copy, incremental=incremental, keep="0h")
    assert len(manifests_of(copy)) == 3


async def test_an_increment_reads_no_more_manifests_than_it_needs(
    chain: tuple[Database, Path], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the last full backup on; further back only if that is damaged, or was for a while."""
    database, first = chain[0], [file.parent.name for file in manifests_of(copy)]
    await asyncio.sleep(1)  # the order is that of the names, which count seconds
    full = (await make_backup(database, copy)).name
    read: set[str] = set()
    manifest_of = Place.manifest_of

    def count(self: Place, backup: str) -> bytes:
        read.add(backup)
        return manifest_of(self, backup)

    monkeypatch.setattr(Place, "manifest_of", count)
    lost = await make_backup(database, copy, incremental=True)
    assert read == {full}
    file = copy / full / "manifest.json"
    stored = file.read_bytes()
    cut(file)
    made = await make_backup(database, copy, incremental=True)
    assert read == {full, lost.name, *first}
    assert [each.partition(": ")[0] for each in made.broken] == [full]
    assert predecessor_of(copy / made.name) == first[-1]
    file.write_bytes(stored)
    last = await make_backup(database, copy, incremental=True)
    assert last.broken == ()
    assert predecessor_of(copy / last.name) == made.name


def predecessor_of(backup: Path) -> str:
    """Return the name of the backup that an incremental one follows."""
    name: str = json.loads((backup / "manifest.json").read_text())["predecessor"][0]
    return name
