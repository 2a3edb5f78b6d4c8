"""The machine and the versions: figures mean nothing without them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Final

__all__ = ["describe_machine"]

_PAGE_BYTES: Final = 8192


def describe_machine(loop: str, mongod: str, postgresql: str, medici: str) -> dict[str, str]:
    """What the figures were measured on; versions that are empty were not used."""
    described = {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "data directory": f"{_file_system(tempfile.gettempdir())}, a flush takes "
        f"{_flush_milliseconds():.2f} ms",
        "system": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_version()}, event loop {loop}",
        "mongod": mongod,
        "PostgreSQL": postgresql,
        "Medici": medici and f"{medici} on Node {_node()}",
    }
    for name in ("pymongo", "beanie", "asyncpg", "uvloop"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            described[name] = importlib.metadata.version(name)
    return {name: value for name, value in described.items() if value}


def _commit() -> str:
    """The commit of this code; marked if there are changes that are not committed."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        root = Path(__file__).parents[1]
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    return ""


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _file_system(path: str) -> str:
    """Its kind, for ``tmpfs`` would make durability free."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        above = [m for m in mounts if Path(path).resolve().is_relative_to(m[1])]
        return max(above, key=lambda mount: len(mount[1]))[2]
    return "an unknown file system"


def _flush_milliseconds() -> float:
    """The median time that one page takes to the disk, where nothing else has to be written."""
    times = []
    with tempfile.TemporaryFile(buffering=0) as file:
        file.write(bytes(_PAGE_BYTES))
        for _ in range(100):
            file.seek(0)
            begun = time.perf_counter()
            file.write(bytes(_PAGE_BYTES))
            os.fsync(file.fileno())
            times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def _node() -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        return done.stdout.strip().removeprefix("v")
    return "unknown"
