"""Who may change a directory: files go only where nobody else can put a link in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["why_replaceable", "why_unsafe"]

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_unsafe(status: os.stat_result) -> str | None:
    """Why other users of the machine can change what is in the directory; None if they can't.

    It has to belong to this process's user or to root, and neither its group nor others may write
    to it. The sticky bit, as ``/tmp`` has it, doesn't make up for that: it keeps files from being
    replaced, but everybody can create a name before we do.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows: the mode says nothing of who may write
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user: run as its owner, or choose a directory of your own"
    if status.st_mode & _OTHERS_MAY_WRITE:
        return f"can be written by other users (mode {stat.S_IMODE(status.st_mode):o}): chmod go-w"
    return None


def why_replaceable(path: Path) -> str | None:
    """Why anybody can put another directory in the place of one in ``path``; None if they can't.

    That takes a directory on the way that everybody may write to, without the sticky bit.
    """
    for directory in (path, *path.parents):
        mode = directory.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return f"{directory} can be written by everybody and has no sticky bit: chmod o-w"
    return None
