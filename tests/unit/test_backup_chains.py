"""Which backups make a chain, which one is restored or followed, and which ones are old.

``F10 I20 I30`` is a full backup and two incremental ones: each ends in the second of its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timezone
from itertools import chain as joined
from itertools import combinations

import pytest

from credit_mongo import BackupError
from credit_mongo.maintenance.backup.chains import Backups
from credit_mongo.maintenance.backup.manifest import Manifest


def at(second: int) -> datetime:
    """Return a moment."""
    return datetime.fromtimestamp(second, timezone.utc)


def full_name(short: str) -> str:
    """Return the name that a backup has in its place."""
    kind = "full" if short[0] == "F" else "incremental"
    return f"{at(int(short[1:])):%Y%m%dT%H%M%SZ}-{kind}-0000000{short[1]}"


def names(manifests: Iterable[Manifest]) -> list[str]:
    """Return the short names."""
    return [f"{each.kind[0].upper()}{each.end[0]}" for each in manifests]


def backup(short: str, before: Manifest | None = None) -> Manifest:
    """Return a backup's manifest."""
    second = int(short[1:])
    return Manifest(
        name=full_name(short),
        kind="full" if before is None else "incremental",
        database="app",
        history="history",
        number=second,
        predecessor=None if before is None else (before.name, before.sha256),
        start=None if before is None else before.end,
        end=(second, 1),
        started_at="",
        ended_at="",
        stored_form={},
        collections={},
        users=None,
        counts={},
        balances=None,
        files=(),
        sha256=f"hash of {short}",
    )


def chain(*shorts: str) -> list[Manifest]:
    """Return the manifests of a chain."""
    made: list[Manifest] = []
    for short in shorts:
        made.append(backup(short, made[-1] if made else None))
    return made


def place(manifests: Iterable[Manifest], *damaged: str) -> Backups:
    """Return a place's backups, some of which are damaged."""
    lost = {full_name(short): BackupError(full_name(short), "was changed") for short in damaged}
    return Backups([each for each in manifests if each.name not in lost], lost)


FIRST = chain("F10", "I20", "I30", "I40")
SECOND = chain("F50", "I60")


@pytest.mark.parametrize(
    ("damaged", "follows"),
    [((), "I40"), (("I40",), "I30"), (("I30",), "I20"), (("I20",), "F10"), (("F10",), None)],
)
def test_the_next_increment_follows_the_newest_backup_that_can_be_restored(
    damaged: tuple[str, ...], follows: str | None
) -> None:
    """Not one behind a damaged one: nobody could restore it."""
    newest = place(FIRST, *damaged).newest
    assert names([newest] if newest else []) == ([follows] if follows else [])


@pytest.mark.parametrize("damaged", ["I40", "I30", "I20"])
def test_the_last_state_is_never_passed_over_without_a_word(damaged: str) -> None:
    """The refusal names the backup, and the last moment that can be restored without it."""
    backups = place(FIRST, damaged)
    newest = backups.newest
    assert newest is not None
    with pytest.raises(BackupError) as refused:
        backups.chain_to(None)
    assert f"{full_name(damaged)}: was changed" in str(refused.value)
    moment = f"1970-01-01T00:00:{newest.end[0]}Z"
    assert str(refused.value).endswith(f"can be restored is --to {moment}")
    assert backups.chain_to(newest.moment)[-1] == newest


def test_a_damaged_backup_hides_no_others() -> None:
    """The newest state is restored, and any moment that doesn't need the damaged one."""
    backups = place([*FIRST, *SECOND], "I30")
    assert names(backups.chain_to(None)) == ["F50", "I60"]
    assert names(backups.chain_to(at(15))) == ["F10", "I20"]
    with pytest.raises(BackupError, match=r"follows one that can't be used\. .* was changed"):
        backups.chain_to(at(35))
    # What follows it is not told again.
    assert [each.backup for each in backups.broken] == [full_name("I30")]


def test_a_place_where_all_is_damaged_says_why() -> None:
    """It doesn't look like an empty one."""
    with pytest.raises(BackupError, match="was changed"):
        place(FIRST[:1], "F10").chain_to(None)
    with pytest.raises(BackupError, match="there is no backup here"):
        place([]).chain_to(None)


def test_a_gap_is_told_once() -> None:
    """By the first backup that follows the missing one."""
    backups = place([FIRST[0], *FIRST[2:]])
    assert [each.backup for each in backups.broken] == [full_name("I30")]
    assert "which is missing" in str(backups.broken[0])


@pytest.mark.parametrize("other", [replace(FIRST[2], sha256="x"), replace(FIRST[2], end=(30, 2))])
def test_a_backup_with_the_name_of_another_is_not_followed(other: Manifest) -> None:
    """Neither is one that ends elsewhere than the next begins."""
    backups = place([*FIRST[:2], other, FIRST[3]])
    with pytest.raises(BackupError, match=r"follows another backup than the .* that is here"):
        backups.chain_to(None)
    assert names([backups.newest] if backups.newest else []) == ["I30"]


def test_a_chain_is_old_when_the_next_has_begun_before_what_is_kept() -> None:
    """Then all of it, the newest first. The newest chain is never old."""
    backups = place([*FIRST, *SECOND])
    assert backups.old(at(49)) == []
    assert names(backups.old(at(50))) == ["I40", "I30", "I20", "F10"]
    assert names(backups.old(at(999))) == ["I40", "I30", "I20", "F10"]
    # A full backup was damaged for a while, so that the chain before it went on.
    later = [*FIRST, *SECOND, backup("I70", FIRST[3])]
    assert place(later).old(at(65)) == []
    assert names(place(later).old(at(70))) == ["I70", "I40", "I30", "I20", "F10"]


def test_nothing_is_ever_removed_because_something_is_damaged() -> None:
    """Whatever is damaged, and whatever is kept, no more is removed than otherwise."""
    everything = [*FIRST, *SECOND, backup("I70", FIRST[3]), *chain("F80", "I90")]
    shorts = names(everything)
    tried = 0
    for damaged in joined.from_iterable(combinations(shorts, number) for number in range(5)):
        for before in range(5, 100, 5):
            usual = set(names(place(everything).old(at(before))))
            assert set(names(place(everything, *damaged).old(at(before)))) <= usual, damaged
            tried += 1
    assert tried > 1000


def test_what_cannot_be_restored_is_not_removed_with_age() -> None:
    """Only whole chains are. A damaged backup is somebody's to look at."""
    backups = place([*FIRST, *SECOND], "I30")
    assert backups.old(at(29)) == []
    assert names(backups.old(at(50))) == ["I20", "F10"]
    impossible = "19701301T000000Z-full-00000001"
    assert Backups(FIRST + SECOND, {impossible: BackupError("", "")}).old(at(999)) == []
