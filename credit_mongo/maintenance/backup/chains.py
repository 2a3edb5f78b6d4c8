"""Chains: a full backup and the incremental ones that follow it without a gap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import TypeAlias

from credit_mongo.errors import BackupError
from credit_mongo.maintenance.backup.encryption import Key
from credit_mongo.maintenance.backup.files import check_file
from credit_mongo.maintenance.backup.manifest import Manifest
from credit_mongo.maintenance.backup.places import Place

__all__ = ["Chain", "all_manifests", "chain_to", "check_chain", "old_backups", "whole_chains"]

Chain: TypeAlias = tuple[Manifest, ...]


def read_manifest(place: Place, name: str) -> Manifest:
    """Read the manifest of a backup. Raises BackupError and OSError."""
    try:
        manifest = Manifest.read(name, place.manifest_of(name))
    except FileNotFoundError:
        raise BackupError(name, "has no manifest: it is not whole") from None
    if manifest.name != name:
        raise BackupError(name, f"was renamed: give it back its name {manifest.name!r}")
    return manifest


def all_manifests(place: Place) -> list[Manifest]:
    """Read all manifests, the oldest first. Raises BackupError and OSError."""
    found = [read_manifest(place, name) for name in place.names()]
    return sorted(found, key=lambda each: each.end)


@dataclass(frozen=True, slots=True)
class _Links:
    """Which backup follows which."""

    manifests: dict[str, Manifest]

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> _Links:
        return cls({each.name: each for each in manifests})

    def chain_of(self, last: Manifest) -> Chain:
        """Return the chain that ends with a backup. Raises BackupError if one is missing."""
        chain = [last]
        while (before := chain[-1].predecessor) is not None:
            name, sha256 = before
            found = self.manifests.get(name)
            if found is None:
                raise BackupError(
                    chain[-1].name,
                    f"follows the backup {name}, which is missing: bring it back, or use an "
                    "earlier moment",
                )
            if found.sha256 != sha256 or found.end != chain[-1].start:
                raise BackupError(
                    chain[-1].name, f"follows another backup than the {name} that is here"
                )
            chain.append(found)
        if not chain[-1].is_full:
            raise BackupError(chain[-1].name, "is incremental, and follows no backup")
        return tuple(reversed(chain))


def chain_to(manifests: Sequence[Manifest], until: datetime | None) -> Chain:
    """Return the chain from which the state at a moment (None: the last one) can be restored.

    That moment's whole second is part of it. Raises BackupError if there is none.
    """
    if not manifests:
        raise BackupError("", "there is no backup here")
    links = _Links.of(manifests)
    if until is None:
        return links.chain_of(manifests[-1])
    seconds = int(until.timestamp())
    within = [each for each in manifests if each.start and each.start[0] <= seconds < each.end[0]]
    ending = [each for each in manifests if each.end[0] == seconds]
    if found := (within or ending):
        return links.chain_of(found[-1])
    first, last = manifests[0], manifests[-1]
    if last.end[0] < seconds:
        raise BackupError(
            last.name,
            f"is the last backup, and ends at {last.moment:%Y-%m-%dT%H:%M:%SZ}: "
            "give that moment or an earlier one",
        )
    raise BackupError(
        "",
        f"no chain of backups has that moment: the first begins at "
        f"{first.moment:%Y-%m-%dT%H:%M:%SZ}, and a full backup begins another",
    )


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


def whole_chains(manifests: Sequence[Manifest]) -> list[list[Manifest]]:
    """Group backups by the full one that they lead back to. Those that lead nowhere come first."""
    first_of: dict[str, str] = {}
    chains: dict[str, list[Manifest]] = {}
    for each in manifests:
        before = each.predecessor
        first = each.name if before is None else first_of.get(before[0], "")
        first_of[each.name] = first
        chains.setdefault(first, []).append(each)
    # Not by their names: those have the moment by the clock of the machine that made them.
    return sorted(chains.values(), key=lambda chain: (first_of[chain[0].name] != "", chain[0].end))


def old_backups(manifests: Sequence[Manifest], before: datetime) -> list[Manifest]:
    """Return the backups that nobody needs to restore a moment after ``before``; newest first.

    Only whole chains are old, and a chain is needed until the next one begins. The newest chain is
    never old.
    """
    chains = whole_chains(manifests)
    old = []
    for chain, following in pairwise(chains):
        begins = following[0].moment
        if begins <= before and chain[-1].moment <= before:
            old += chain
    # Newest first, so that a run that is killed leaves a chain that is only shorter.
    return sorted(old, key=lambda each: each.end, reverse=True)
