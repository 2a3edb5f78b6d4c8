"""Chains: a full backup and the incremental ones that follow it without a gap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from itertools import pairwise
from typing import TypeAlias

from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.encryption import Key
from credit_mongo.maintenance.backup.files import check_file
from credit_mongo.maintenance.backup.manifest import Manifest
from credit_mongo.maintenance.backup.places import Place
from credit_mongo.printing import moment_to_seconds

__all__ = ["Backups", "Chain", "check_chain"]

Chain: TypeAlias = tuple[Manifest, ...]


def _read_manifest(place: Place, name: str) -> Manifest:
    """Raises BackupError, with the backup's name if only this one can't be read."""
    try:
        stored = place.manifest_of(name)
    except FileNotFoundError:
        raise BackupError(name, "has no manifest: it is not whole") from None
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise BackupError(name, f"its manifest can't be read: {why}") from None
    manifest = Manifest.read(name, stored)
    if manifest.name != name:
        raise BackupError(name, f"was renamed: give it back its name {manifest.name!r}")
    return manifest


class Backups:
    """The backups of a place. One that is damaged leaves the others as useful as they are."""

    def __init__(
        self, manifests: Iterable[Manifest], damaged: Mapping[str, BackupError] | None = None
    ) -> None:
        self.manifests: Chain = tuple(sorted(manifests, key=lambda each: each.end))
        """Of all that can be read, the oldest first."""
        self._damaged = dict(damaged or {})
        self._named = {each.name: each for each in self.manifests}
        # By the name of each that can be restored: the name of the full one that it leads back to.
        self._first: dict[str, str] = {}
        for each in self.manifests:
            if each.predecessor is None:
                if each.is_full:
                    self._first[each.name] = each.name
            elif (before := self._before(each)) is not None and before.name in self._first:
                self._first[each.name] = self._first[before.name]

    @classmethod
    def of(cls, place: Place, *, recent: bool = False) -> Backups:
        """Read all manifests. Raises BackupError and OSError if the place can't be read.

        With ``recent``, read only the newest full backup that is not damaged, what was made later,
        and what that follows. A month of increments, one a minute, has 43,200 manifests.
        """
        left = dict.fromkeys(sorted(place.names(), reverse=True))
        manifests: list[Manifest] = []
        damaged: dict[str, BackupError] = {}
        wanted: set[str] = set()
        has_full = False
        while left and not (recent and has_full and not wanted):
            name = next(iter(left))
            del left[name]
            wanted.discard(name)
            try:
                manifest = _read_manifest(place, name)
            except BackupError as error:
                if not error.backup:
                    raise
                damaged[name] = error
                continue
            manifests.append(manifest)
            has_full |= manifest.is_full
            if manifest.predecessor is not None and manifest.predecessor[0] in left:
                wanted.add(manifest.predecessor[0])
        return cls(manifests, dict(sorted(damaged.items())))

    def and_(self, manifest: Manifest) -> Backups:
        """Return these and one more."""
        return Backups((*self.manifests, manifest), self._damaged)

    def _before(self, manifest: Manifest) -> Manifest | None:
        """Return the backup that an incremental one follows, if it is here and can be read."""
        assert manifest.predecessor is not None  # noqa: S101 - a full one follows none
        name, sha256 = manifest.predecessor
        found = self._named.get(name)
        if found is None or found.sha256 != sha256 or found.end != manifest.start:
            return None
        return found

    def _why_broken(self, manifest: Manifest) -> BackupError:
        """Why a backup, which has nothing to follow here, can't be restored."""
        if manifest.predecessor is None:
            return BackupError(manifest.name, "is incremental, and follows no backup")
        name = manifest.predecessor[0]
        if name in self._named:
            return BackupError(
                manifest.name, f"follows another backup than the {name} that is here"
            )
        if name in self._damaged:
            return BackupError(
                manifest.name, f"follows one that can't be used. {self._damaged[name]}"
            )
        return BackupError(
            manifest.name,
            f"follows the backup {name}, which is missing: bring it back, or use an earlier moment",
        )

    @property
    def broken(self) -> list[BackupError]:
        """Why backups can't be used: of each that is damaged, or follows one that is missing."""
        lost = [
            self._why_broken(each)
            for each in self.manifests
            if each.name not in self._first
            and (
                each.predecessor is None
                or (self._before(each) is None and each.predecessor[0] not in self._damaged)
            )
        ]
        return [*self._damaged.values(), *lost]

    @property
    def newest(self) -> Manifest | None:
        """The newest backup that can be restored."""
        whole = (each for each in reversed(self.manifests) if each.name in self._first)
        return next(whole, None)

    # Restoring

    def chain_of(self, last: Manifest) -> Chain:
        """Return the chain that ends with a backup. Raises BackupError if one is missing."""
        chain = [last]
        while not chain[-1].is_full:
            before = None if chain[-1].predecessor is None else self._before(chain[-1])
            if before is None:
                raise self._why_broken(chain[-1])
            chain.append(before)
        return tuple(reversed(chain))

    def chain_to(self, until: datetime | None) -> Chain:
        """Return the chain from which the state at a moment (None: the last) can be restored.

        That moment's whole second is part of it. Raises BackupError if there is none. What the last
        backup has is never passed over because it is damaged: whoever restores has to say so.
        """
        if not self.manifests:
            raise next(iter(self._damaged.values()), BackupError("", "there is no backup here"))
        return self._last_chain() if until is None else self._chain_with(int(until.timestamp()))

    def _last_chain(self) -> Chain:
        last = self.manifests[-1]
        try:
            # Of a damaged one only the name tells when it was made.
            if self._damaged and max(self._damaged) > last.name:
                raise self._damaged[max(self._damaged)]
            return self.chain_of(last)
        except BackupError as error:
            if self.newest is None:
                raise
            raise BackupError(
                error.backup,
                f"{error.reason}. Without it, the last moment that can be restored is "
                f"--to {moment_to_seconds(self.newest.moment)}",
            ) from None

    def _chain_with(self, second: int) -> Chain:
        within = [
            each for each in self.manifests if each.start and each.start[0] <= second < each.end[0]
        ]
        ending = [each for each in self.manifests if each.end[0] == second]
        found = [*ending, *within]
        if found:
            whole = [each for each in found if each.name in self._first]
            return self.chain_of((whole or found)[-1])
        first, last = self.manifests[0], self.manifests[-1]
        damaged = "".join(f". There is also {each}" for each in list(self._damaged.values())[-1:])
        if last.end[0] < second:
            raise BackupError(
                last.name,
                f"is the last backup, and ends at {moment_to_seconds(last.moment)}: "
                f"give that moment or an earlier one{damaged}",
            )
        raise BackupError(
            "",
            f"no chain of backups has that moment: the first begins at "
            f"{moment_to_seconds(first.moment)}, and a full backup begins another{damaged}",
        )

    # Pruning

    @property
    def chains(self) -> list[list[Manifest]]:
        """The chains that can be restored, the oldest first."""
        chains: dict[str, list[Manifest]] = {}
        for each in self.manifests:
            if each.name in self._first:
                chains.setdefault(self._first[each.name], []).append(each)
        # Not by their names: these have the moment by the clock of the machine that made them.
        return sorted(chains.values(), key=lambda chain: chain[0].end)

    def old(self, before: datetime) -> list[Manifest]:
        """Return the backups that nobody needs to restore a moment after ``before``; newest first.

        Only whole chains are old, and a chain is needed until the next one begins. The newest chain
        is never old. Nor is a backup that can't be restored. As long as there is one that was made
        after ``before``, none is old: somebody may repair it, and then need what it follows.
        """
        broken = [each.moment for each in self.manifests if each.name not in self._first]
        if any(moment > before for moment in (*broken, *map(_begun, self._damaged))):
            return []
        old = []
        for chain, following in pairwise(self.chains):
            if following[0].moment <= before and chain[-1].moment <= before:
                old += chain
        # Newest first, so that a run that is killed leaves a chain that is only shorter.
        return sorted(old, key=lambda each: each.end, reverse=True)


def _begun(name: str) -> datetime:
    """When a backup was begun, as far as its name tells."""
    try:
        return datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=timezone.utc)
    except ValueError:  # such as a thirteenth month
        return datetime.max.replace(tzinfo=timezone.utc)


def check_chain(place: Place, chain: Chain, key: Key | None) -> None:
    """Read everything that is to be restored. Raises BackupError if any byte was changed."""
    for manifest in chain:
        Manifest.check_seal(manifest.name, place.manifest_of(manifest.name), key)
        for facts in manifest.files:
            try:
                with place.open(manifest.name, facts.path) as source:
                    check_file(manifest.name, facts, source)
            except FileNotFoundError:
                raise BackupError(
                    manifest.name, f"lacks its file {facts.path}: use another copy of this backup"
                ) from None
