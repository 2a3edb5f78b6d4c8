"""The data directories of a local replica set, which no other user can reach."""

from __future__ import annotations

import stat
import tempfile
from pathlib import Path

from credit_mongo.errors import StorageError
from credit_mongo.private_files import why_replaceable, why_unsafe

__all__ = ["make_kept_directories", "make_temporary_directory"]


def make_temporary_directory() -> Path:
    """Make the directory before its name appears among any process's arguments.

    Every user of the machine can read arguments. If the directory were made later, another user
    could make it first, with links in place of the log and the data files.
    """
    try:
        root = Path(tempfile.mkdtemp(prefix="credit-mongo-")).resolve()
    except OSError as error:
        raise StorageError(f"the temporary directory can't be made: {error}") from error
    if (reason := why_replaceable(root.parent)) is not None:
        root.rmdir()
        raise StorageError(f"the temporary directory can't be used: {reason}. Set TMPDIR")
    return root


def make_kept_directories(data: Path, size: int) -> Path:
    """Make the members' directories below ``data``, for their owner only, whatever the umask.

    Raises StorageError if somebody else could put files or links into one of them.
    """
    try:
        data = data.resolve()
        for directory in (*reversed(data.parents), data):
            directory.mkdir(0o700, exist_ok=True)
        _check_that_it_is_ours(data)
        found = len(list(data.glob("member-*")))
        if found not in (0, size):
            raise StorageError(
                f"{data} has the data of {found} members, not of {size}: "
                f"start {found} members, or choose another directory"
            )
        for number in range(size):
            directory = data / f"member-{number}"
            directory.mkdir(0o700, exist_ok=True)
            _check_that_it_is_ours(directory)
            directory.chmod(0o700)
    except (OSError, RuntimeError, ValueError) as error:  # also a loop of links, or a NUL
        raise StorageError(f"the data directory can't be used: {error}") from error
    return data


def _check_that_it_is_ours(directory: Path) -> None:
    status = directory.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise StorageError(f"the data directory can't be used: {directory} is a link")
    if (reason := why_unsafe(status)) is not None:
        raise StorageError(f"the data directory can't be used: {directory} {reason}")
    if (reason := why_replaceable(directory.parent)) is not None:
        raise StorageError(f"the data directory can't be used: {reason}")
