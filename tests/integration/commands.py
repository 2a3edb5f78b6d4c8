"""Commands as users call them: in this process, which is quick, or as a process of their own."""

from __future__ import annotations

import asyncio
import io
import os
import pty
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final
from unittest import mock

from credit_mongo.cli import main
from tests.integration.promises import Database

__all__ = ["PROGRAM", "ROOT", "environment", "run", "run_on_terminal", "run_program", "where"]

ROOT: Final = Path(__file__).parents[2]
PROGRAM: Final = ("-c", "import sys; from credit_mongo.cli import main; sys.exit(main())")
# Standard output is one for the whole process.
_one_at_a_time: Final = asyncio.Lock()


def environment(**more: str) -> dict[str, str]:
    """Return this process's environment without the settings of a database."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MONGODB_")}
    ours = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "COLUMNS": "80"}
    return {**inherited, **ours, **more}


def where(replica_set_uri: str, database: Database) -> tuple[str, ...]:
    """Return the options for a database."""
    return ("--uri", replica_set_uri, "--database", database.name)


async def run(*arguments: str, **more: str) -> tuple[int, str, str]:
    """Run ``credit-mongo`` in this process, and return the exit code, stdout and stderr.

    ``more`` is set in the environment. Standard input is at its end.
    """
    output, errors = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    async with _one_at_a_time:
        with (
            mock.patch.dict(os.environ, environment(**more), clear=True),
            mock.patch.object(sys, "stdin", io.StringIO()),
            redirect_stdout(output),
            redirect_stderr(errors),
        ):
            code = await asyncio.to_thread(main, arguments)
            output.flush()
            errors.flush()
    return code, _text_of(output), _text_of(errors)


def _text_of(stream: io.TextIOWrapper) -> str:
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode()


async def run_program(
    *arguments: str, program: tuple[str, ...] = PROGRAM, **more: str
) -> tuple[int, str, str]:
    """Run Python with this program as a process, and return the exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        *arguments,
        cwd=ROOT,
        env=environment(**more),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def run_on_terminal(*arguments: str) -> tuple[int, str]:
    """Run ``credit-mongo`` on a terminal of 300 columns. Returns the exit code and the output."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *PROGRAM,
        *arguments,
        cwd=ROOT,
        env=environment(COLUMNS="300", TERM="xterm"),
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)

    def read() -> bytes:
        sent = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # The other end is closed.
                return sent
            if not part:
                return sent
            sent += part

    sent = await asyncio.to_thread(read)
    os.close(ours)
    return await process.wait(), sent.decode()
