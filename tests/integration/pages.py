"""Runs a page of the documentation: its Python from top to bottom, its commands in between.

The code blocks of a page share their names and may ``await``. ``print(…)  # says`` must print what
the comment says, up to a comma. A block with a title is a file of that name, which other blocks can
import. In shell blocks, ``credit-mongo`` and ``python`` commands run. Any other command must be
known here.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from credit_mongo.cli import main

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.DOTALL | re.MULTILINE,
)
_PROMISE = re.compile(r"^\s*print\(.*\)  # (?P<words>.+)$")
_LANGUAGES = {"python", "sh", "json", "text", "toml", ""}
_FOR_READERS = {"pip", "make", "mongod", "mongosh", "mongodump", "mongorestore"}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of the page on which its text begins (from 1)."""

    language: str
    title: str | None
    text: str
    line: int


def blocks_of(page: str) -> list[Block]:
    """Return every fenced block of a page."""
    found = []
    for match in _BLOCK.finditer(page):
        indent, text = match["indent"], match["text"]
        lines = [line.removeprefix(indent) for line in text.splitlines(keepends=True)]
        line = page.count("\n", 0, match.start("text")) + 1
        found.append(Block(match["language"], match["title"], "".join(lines), line))
    fences = len(re.findall(r"^ *```", page, re.MULTILINE))
    assert fences == 2 * len(found), "a block does not end"
    return found


@dataclass
class Page:
    """A page that runs in a directory, with the environment of its commands."""

    path: Path
    directory: Path
    environment: Mapping[str, str]
    names: dict[str, Any] = field(default_factory=dict)
    printed: dict[int, list[str]] = field(default_factory=dict)
    promised: dict[int, str] = field(default_factory=dict)

    def run(self, text: str) -> int:
        """Run all blocks in order, and return how many there were."""
        self.names |= {"__name__": "__page__", "print": self._print}
        blocks = blocks_of(text)
        with _importable(self.directory), closing(asyncio.new_event_loop()) as loop:
            try:
                for block in blocks:
                    self._run_block(block, loop)
            finally:
                _end(loop)
        for line, words in self.promised.items():
            for printed in self.printed.get(line, ["nothing"]):
                assert f"{words},".startswith(f"{printed},"), f"{self.path}:{line}: {printed}"
        return len(blocks)

    def _run_block(self, block: Block, loop: asyncio.AbstractEventLoop) -> None:
        assert block.language in _LANGUAGES, f"{self.path}:{block.line}: {block.language!r}"
        if block.title is not None:
            (self.directory / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            self._run_python(block.text, block.line, loop)
        elif block.language == "sh":
            self._run_commands(block)

    def _run_python(self, text: str, line: int, loop: asyncio.AbstractEventLoop) -> None:
        """Run code that starts on this line of the page."""
        for number, each in enumerate(text.splitlines(), line):
            if promise := _PROMISE.match(each):
                self.promised[number] = promise["words"]
        # Tracebacks and printed lines refer to the page's line numbers.
        lines = "\n" * (line - 1) + text
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(lines, str(self.path), "exec", flags=flags, dont_inherit=True)
        result = eval(code, self.names)  # noqa: S307 - our own pages
        if inspect.iscoroutine(result):
            loop.run_until_complete(result)

    def _print(self, *values: object) -> None:
        line = inspect.stack(0)[1].lineno
        self.printed.setdefault(line, []).append(" ".join(str(value) for value in values))

    def _run_commands(self, block: Block) -> None:
        text = block.text.replace("\\\n", " ")
        for command in text.splitlines():
            program, *arguments = shlex.split(command, comments=True) or ["pip"]
            if program in _FOR_READERS:
                continue
            assert program in ("credit-mongo", "python"), f"{self.path}:{block.line}: {command}"
            # In this process, and on its directory and environment: starting one takes a second.
            run = _run_credit_mongo if program == "credit-mongo" else self._run_python_program
            status, output = run(arguments)
            assert status == 0, f"{self.path}:{block.line}: {command}\n{output}"

    def _run_python_program(self, arguments: list[str]) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.directory,
            env=dict(self.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


def _run_credit_mongo(arguments: list[str]) -> tuple[int, str]:
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        status = main(arguments)
    return status, output.getvalue()


@contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Make the directory's modules importable, and forget them afterwards."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        sys.path.remove(str(directory))
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if file is not None and Path(file).parent == directory:
                del sys.modules[name]


def _end(loop: asyncio.AbstractEventLoop) -> None:
    """End the loop of a failed page, which closed nothing, so that its own error is seen."""
    tasks = asyncio.all_tasks(loop)

    async def cancelled() -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    loop.run_until_complete(cancelled())
    loop.run_until_complete(loop.shutdown_asyncgens())
