"""Build a Docker image from this machine's mongod, for machines that reach no registry.

    python scripts/build_test_image.py [--tag credit-mongo-test]

The image has the ``mongod`` that `credit_mongo.local` finds and the libraries that ``ldd`` names,
and nothing else. Linux, with a Docker engine and its ``docker`` command. Then:

    CREDIT_MONGO_TEST_IMAGE=credit-mongo-test TESTCONTAINERS_RYUK_DISABLED=true pytest

Exits 2 with one line if the image can't be built.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from credit_mongo.errors import StorageError
from credit_mongo.local import find_mongod

# What is in Docker's names; of their order its engine is the judge.
_TAG = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]{0,254}", re.ASCII)


def _libraries(program: Path) -> list[Path]:
    """The files that ``ldd`` names, the loader among them."""
    shown = subprocess.run(  # noqa: S603 - on the mongod that runs here anyway
        ["ldd", str(program)],  # noqa: S607
        check=True,
        capture_output=True,
    ).stdout.decode(errors="surrogateescape")
    if missing := re.findall(r"(\S+) => not found", shown):
        raise StorageError(f"{program} needs {', '.join(missing)}, which this machine has not")
    return [Path(name) for name in re.findall(r"(/\S+) \(0x", shown)]


def _root_file_system(program: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", dereference=True) as archive:
        for name, mode in (("data/db", 0o700), ("tmp", 0o1777)):
            directory = tarfile.TarInfo(name)
            directory.type, directory.mode = tarfile.DIRTYPE, mode
            archive.addfile(directory)
        archive.add(program, "usr/bin/mongod")
        for library in _libraries(program):
            archive.add(library, str(library).lstrip("/"))
    return content.getvalue()


def build(tag: str) -> Path:
    """Give the Docker engine the image; return the mongod that is in it.

    Raises StorageError if there is no mongod, or no Docker engine takes the image.
    """
    program = find_mongod()
    if shutil.which("docker") is None:
        raise StorageError("there is no docker command on PATH: install Docker, or docker.io")
    command = ["docker", "import", "--change", "ENV PATH=/usr/bin", "-", tag]
    try:
        subprocess.run(  # noqa: S603 - no shell
            command, input=_root_file_system(program), check=True, capture_output=True
        )
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode(errors="backslashreplace").split())
        raise StorageError(f"{error.cmd[0]} failed: {said}") from error
    except OSError as error:
        raise StorageError(f"the image can't be built: {error}") from error
    return program


def _tag(text: str) -> str:
    if not _TAG.fullmatch(text):
        raise argparse.ArgumentTypeError("must be a name for an image, say credit-mongo-test:1")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Build it, say so, and return the exit code."""
    parser = argparse.ArgumentParser(description="Build a Docker image from the local mongod.")
    parser.add_argument("--tag", type=_tag, default="credit-mongo-test", help="its name")
    tag = parser.parse_args(arguments).tag
    try:
        program = build(tag)
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{tag}: {program}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
