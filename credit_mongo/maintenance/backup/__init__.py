"""Backups: copies of a ledger that are proven, and the way back from them.

What holds:

1. A backup shows the ledger at one cluster time, which its manifest names: everything that was
   committed up to that time, and nothing else.
2. A full backup copies every collection. An incremental one has every change between the time of
   the backup before it and its own. A full backup and the incremental ones that follow it, without
   a gap, are a chain. The state at any moment of a chain can be restored, by whole transactions.
3. A backup is whole or not there. Its manifest is written last, and names each file with its size
   and SHA-256, itself with its own, and the backup before it with that one's.
4. A database into which a backup is being restored has no ledger until the restore has ended: the
   document with the settings comes last. Until then a document in its place says that a restore is
   going on and how far it is, and every ledger that opens is refused.
5. Nothing is written, here or there, before all that is to be read has been checked.

How, by module:

- ``making`` makes a backup. ``dumping`` reads the collections in snapshots of one cluster time.
  ``changes`` reads what was committed after a cluster time, by a change stream. A change stream
  only shows what a majority has, and so it is exact across elections.
- ``manifest`` is what a backup says of itself, ``chains`` finds the backups that lead to a moment.
- ``places`` is where backups are kept: a directory, or anything that fsspec knows.
- ``files`` writes and reads one file, compressed and, with ``encryption``, encrypted.
- ``restoring`` loads a chain into a database. ``documents`` applies changes to documents.
- ``checking`` restores into a scratch database, verifies and cleans up. ``reconciling`` finds what
  an application has acknowledged and a restored ledger lacks.
"""
