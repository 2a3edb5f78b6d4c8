"""The bugs of backups and restores."""

from __future__ import annotations

from typing import Final

from tests.mutants.bug import Bug

__all__ = ["BACKUPS"]

CHAINS: Final = "tests/unit/test_backup_chains.py"
ENCRYPTION: Final = "tests/unit/test_encryption.py"
BACKUP: Final = "tests/integration/test_backup.py"
CHANGES: Final = "tests/integration/test_backup_changes.py"
DAMAGED: Final = "tests/integration/test_backup_damaged.py"
BAD_INPUT: Final = "tests/integration/test_backup_bad_input.py"
KILLS: Final = "tests/integration/test_backup_kills.py"
PROMISES: Final = "tests/integration/test_backup_promises.py"
REFUSALS: Final = "tests/integration/test_backup_refusals.py"
WHILE_USED: Final = "tests/integration/test_backup_while_used.py"

BACKUPS: Final = (
    # Reading
    Bug(
        "a full backup reads each batch at another time",
        "maintenance/backup/dumping.py",
        '{"level": "snapshot", "atClusterTime": to_timestamp(self.times[-1])},',
        '{"level": "snapshot"},',
        (BACKUP,),
    ),
    Bug(
        "a full backup that goes on in a later snapshot doesn't note it",
        "maintenance/backup/dumping.py",
        "        noted.append(segment)\n",
        "        noted[:] = noted or [segment]\n",
        (PROMISES,),
    ),
    Bug(
        "a change that a later snapshot has is added again",
        "maintenance/backup/segments.py",
        "        return change.time > times[part]",
        "        return True",
        (PROMISES,),
    ),
    Bug(
        "an increment passes over the first change after the last backup",
        "maintenance/backup/changes.py",
        "Timestamp(start[0], start[1] + 1)",
        "Timestamp(start[0], start[1] + 2)",
        (CHANGES,),
    ),
    Bug(
        "an increment begins again after an election",
        "maintenance/backup/changes.py",
        '            self._place = {"resumeAfter": token}',
        "            pass",
        (CHANGES,),
    ),
    Bug(
        "an increment leaves out what comes in a batch with its mark",
        "maintenance/backup/changes.py",
        "                    yield batch, change.time\n",
        "                    yield [], change.time\n",
        (BACKUP,),
    ),
    Bug(
        "an increment follows a backup of before a restore",
        "maintenance/backup/making.py",
        "    if last.history != mark.history:",
        "    if False:",
        (BACKUP, BAD_INPUT),
    ),
    Bug(
        "the command tells the server's code for a lost oplog, and no remedy",
        "cli/failures.py",
        "not isinstance(error, BackupError | JobTimeoutError | MigrationError)",
        "not isinstance(error, JobTimeoutError | MigrationError)",
        (REFUSALS,),
    ),
    # Writing
    Bug(
        "a backup is written under its name from the beginning",
        "maintenance/backup/places.py",
        '        self._hidden = path / f".{backup}.part"\n',
        "        self._hidden = path / backup\n",
        (KILLS,),
    ),
    Bug(
        "a manifest elsewhere is written although files are gone",
        "maintenance/backup/places.py",
        "        self._check()\n",
        "",
        (WHILE_USED,),
    ),
    Bug(
        "a suspended backup ends beside another one",
        "maintenance/backup/making.py",
        "        await self._lease.check()\n        await tasks.in_thread(writing.finish",
        "        await tasks.in_thread(writing.finish",
        (WHILE_USED,),
    ),
    Bug(
        "a key is taken, and nothing is encrypted",
        "maintenance/backup/making.py",
        'None if self._key is None else Encryption(self._key, f"{backup}/{path}")',
        "None",
        (BAD_INPUT,),
    ),
    Bug(
        "an encrypted file may end after any chunk",
        "maintenance/backup/encryption.py",
        '(b"\\x01" if is_last else b"\\x00")',
        'b"\\x00"',
        (ENCRYPTION,),
    ),
    # Chains
    Bug(
        "an increment follows what cannot be restored",
        "maintenance/backup/chains.py",
        "(each for each in reversed(self.manifests) if each.name in self._first)",
        "reversed(self.manifests)",
        (CHAINS,),
    ),
    Bug(
        "a restore passes over a damaged last backup",
        "maintenance/backup/chains.py",
        "if self._damaged and max(self._damaged) > last.name:",
        "if False:",
        (CHAINS,),
    ),
    Bug(
        "a pruning removes the chain of the oldest moment that is kept",
        "maintenance/backup/chains.py",
        "if following[0].moment <= before and chain[-1].moment <= before:",
        "if chain[-1].moment <= before:",
        (CHAINS,),
    ),
    Bug(
        "a pruning removes a chain that has gone on",
        "maintenance/backup/chains.py",
        "if following[0].moment <= before and chain[-1].moment <= before:",
        "if following[0].moment <= before:",
        (CHAINS,),
    ),
    Bug(
        "a pruning removes the full backup before its increments",
        "maintenance/backup/chains.py",
        "sorted(old, key=lambda each: each.end, reverse=True)",
        "sorted(old, key=lambda each: each.end)",
        (CHAINS,),
    ),
    Bug(
        "a pruning takes a damaged backup for one that was never there",
        "maintenance/backup/chains.py",
        "(*broken, *map(_begun, self._damaged))",
        "broken",
        (CHAINS,),
    ),
    Bug(
        "a damaged manifest ends every backup",
        "maintenance/backup/chains.py",
        "                if not error.backup:\n",
        "                if True:\n",
        (DAMAGED,),
    ),
    Bug(
        "a store that does not answer has no backups",
        "maintenance/backup/chains.py",
        "                if not error.backup:\n",
        "                if False:\n",
        (DAMAGED,),
    ),
    # Restoring
    Bug(
        "the hash of a file is not compared",
        "maintenance/backup/files.py",
        "    if digest.hexdigest() != facts.sha256:",
        "    if False:",
        (BAD_INPUT,),
    ),
    Bug(
        "the seal of a manifest is not checked",
        "maintenance/backup/manifest.py",
        "        if not hmac.compare_digest(seal, key.seal_of(_canonical(content))):",
        "        if False:",
        (BAD_INPUT,),
    ),
    Bug(
        "a restore keeps what was deleted",
        "maintenance/backup/target.py",
        'deletes.append({"q": query, "limit": 1})',
        "pass",
        (BACKUP,),
    ),
    Bug(
        "a restore notes changes that are not committed",
        "maintenance/backup/restoring.py",
        'await self.target.note({f"changes.{manifest.name}": position}, session)',
        'await self.target.note({f"changes.{manifest.name}": position})',
        (KILLS,),
    ),
    Bug(
        "a restore leaves out the last second",
        "maintenance/backup/restoring.py",
        "change.time[0] > until:",
        "change.time[0] >= until:",
        (BACKUP,),
    ),
    Bug(
        "a restore compares no numbers of documents",
        "maintenance/backup/restoring.py",
        "            if found != self._counts.get(name, 0):",
        "            if False:",
        (WHILE_USED,),
    ),
    Bug(
        "a restore overwrites a ledger",
        "maintenance/backup/target.py",
        "            await self._check_that_it_is_empty()\n",
        "            pass\n",
        (BAD_INPUT,),
    ),
    Bug(
        "a restore tells the loss up to now",
        "maintenance/backup/restoring.py",
        "    lost = lost or max(datetime.now(timezone.utc), moment)",
        "    lost = max(datetime.now(timezone.utc), moment)",
        (PROMISES,),
    ),
    Bug(
        "reconciling forgets the archive",
        "maintenance/backup/reconciling.py",
        "(names.transactions, names.transactions_archive)",
        "(names.transactions,)",
        (PROMISES,),
    ),
    Bug(
        "reconciling forgets keys whose records have expired",
        "maintenance/backup/reconciling.py",
        '            *((name, "idempotencyKey") for name in transactions),\n',
        "",
        (PROMISES,),
    ),
)
