"""Build a Docker image from this machine's mongod, for machines that can't reach a registry.

    python scripts/build_test_image.py [--tag credit-mongo-test]

The image contains the ``mongod`` that `credit_mongo.local` finds and the libraries that ``ldd``
names, and nothing else. This needs Linux, a Docker engine and the ``docker`` command. Then run:

    CREDIT_MONGO_TEST_IMAGE=credit-mongo-test TESTCONTAINERS_RYUK_DISABLED=true pytest

Exit code 2, with one line on stderr: the image can't be built.
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

# The characters of Docker's image names. The engine checks the rest.
_TAG = re.compile(r"[a-z0-9][A-Za-z0-9._/:-]{0,254}", re.ASCII)


def _libraries(program: Path) -> list[Path]:
    """The files that ``ldd`` names, including the loader."""
    shown = subprocess.run(  # noqa: S603 - we run this mongod anyway
        ["ldd", str(program)],  # noqa: S607
        check=True,
        capture_output=True,
    ).stdout.decode(errors="surrogateescape")
    if missing := re.findall(r"(\S+) => not found", shown):
        raise StorageError(f"{program} needs {', '.join(missing)}: install them on this machine")
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
    """Build the image in the Docker engine and return the path of its mongod on this machine.

    Raises StorageError if there is no mongod, or if Docker can't import the image.
    """
    program = find_mongod()
    if shutil.which("docker") is None:
        raise StorageError("there is no docker command on PATH: install Docker")
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
        raise argparse.ArgumentTypeError("must be an image name, for example credit-mongo-test:1")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the image, print its name, and return the exit code."""
    parser = argparse.ArgumentParser(description="Build a Docker image from the local mongod.")
    parser.add_argument("--tag", type=_tag, default="credit-mongo-test", help="the image's name")
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
