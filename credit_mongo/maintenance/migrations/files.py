"""Migrations as files of the application: one Python file each, applied in the order of the names.

A file's name is a moment and a word: ``20260131120000_rename_plan.py``. The file defines
``forward``, may define ``backward``, and both take the database:

    async def forward(database):
        await database["members"].update_many({}, {"$rename": {"plan": "tier"}})

Each of them runs in one transaction. A file with ``IN_TRANSACTION = False`` runs without one, and
must allow being run again after it was interrupted anywhere.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias

from credit_mongo.errors import InvalidRequestError, MigrationError

__all__ = [
    "Direction",
    "Migration",
    "MigrationFile",
    "Step",
    "create_file",
    "find_file",
    "read_files",
    "where",
]

Direction: TypeAlias = Literal["up", "down"]
Step: TypeAlias = Callable[[Any], Awaitable[object]]
"""A function of a migration. It takes the driver's database."""

_FILE: Final = re.compile(r"\d{14}_([a-z0-9_]{1,80})")
_WORD: Final = re.compile(r"[a-z0-9_]{1,80}")
_FORM: Final = "14 digits and a word in lower case, such as 20260131120000_rename_plan.py"
_TEMPLATE: Final = '''"""{word}"""

# Without a transaction, write False. Then both functions must allow being run again after they were
# interrupted anywhere.
IN_TRANSACTION = True


async def forward(database):
    """Apply the migration."""


async def backward(database):
    """Undo it. Remove this function if that is impossible."""
'''


@dataclass(frozen=True, slots=True)
class Migration:
    """What a file defines."""

    name: str
    in_transaction: bool
    forward: Step
    backward: Step | None

    def step(self, direction: Direction) -> Step:
        """Return what to run. Raises MigrationError if there is no way back."""
        if direction == "up":
            return self.forward
        if self.backward is None:
            raise MigrationError(self.name, "can't be rolled back: its file defines no backward")
        return self.backward


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """A migration's file, as it was read."""

    name: str
    """The file's name without ``.py``."""
    path: Path
    source: bytes = field(repr=False)

    @property
    def word(self) -> str:
        """The name without the moment."""
        return self.name.partition("_")[2]

    @property
    def checksum(self) -> str:
        """The SHA-256 of the text, whatever its line ends."""
        return hashlib.sha256(self.source.replace(b"\r\n", b"\n")).hexdigest()

    def load(self) -> Migration:
        """Run the file, and return what it defines. Raises MigrationError."""
        module = ModuleType(f"credit_mongo_migrations.{self.name}")
        module.__file__ = str(self.path)
        # As with ``python -m``, modules in the current directory are found.
        if "" not in sys.path:
            sys.path.insert(0, "")
        # Dataclasses and documents look up their module by its name.
        sys.modules[module.__name__] = module
        try:
            code = compile(self.source, str(self.path), "exec")
            exec(code, module.__dict__)  # noqa: S102 - the application's own file, as checked
        except (Exception, SystemExit) as error:
            reason = f"{self.path} can't be loaded: {where(error, self.path)}"
            raise MigrationError(self.name, reason) from error
        return self._defined_in(module)

    def _defined_in(self, module: ModuleType) -> Migration:
        in_transaction = getattr(module, "IN_TRANSACTION", True)
        if not isinstance(in_transaction, bool):
            raise MigrationError(self.name, f"{self.path}: IN_TRANSACTION must be True or False")
        forward: Any = getattr(module, "forward", None)
        backward = getattr(module, "backward", None)
        for function, step in (("forward", forward), ("backward", backward)):
            if not inspect.iscoroutinefunction(step) and (step is not None or step is forward):
                reason = f"{self.path} must define async def {function}(database)"
                raise MigrationError(self.name, reason)
        return Migration(self.name, in_transaction, forward, backward)


def where(error: BaseException, path: Path) -> str:
    """Say what an error is, and the last line of the file that led to it.

    The error's own text may quote data or secrets, so it is left out.
    """
    what = type(error).__name__
    if isinstance(error, ImportError | AttributeError | NameError) and error.name:
        what = f"{what} {error.name!r}"
    if isinstance(error, SyntaxError):
        return f"{what} in line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{what} in line {lines[-1]}" if lines else what


def read_files(directory: Path) -> Sequence[MigrationFile]:
    """Read the migrations of a directory, in their order. Other than Python files don't count.

    Raises OSError, and MigrationError if there is no such directory, for a name that is none, and
    for one that two files have.
    """
    if not directory.exists():
        raise MigrationError(
            "",
            f"{directory}: No such file or directory. Name the migrations' directory by "
            "--directory, or create the first migration by credit-mongo migrate create NAME",
        )
    files: list[MigrationFile] = []
    for path in sorted(directory.iterdir()):
        if path.suffix != ".py" or path.name.startswith(("_", ".")):
            continue
        if not _FILE.fullmatch(path.stem):
            raise MigrationError("", f"{path}: the name must be {_FORM}")
        file = MigrationFile(path.stem, path, path.read_bytes())
        twin = next((each for each in files if each.word == file.word), None)
        if twin is not None:
            reason = f"{twin.path} and {path} have one name: rename the one that isn't applied yet"
            raise MigrationError(file.word, reason)
        files.append(file)
    return files


def find_file(files: Sequence[MigrationFile], name: str, directory: Path) -> MigrationFile:
    """Return the file of a migration, by its whole name or without the moment.

    Raises MigrationError if there is none.
    """
    for file in files:
        if name.removesuffix(".py") in (file.name, file.word):
            return file
    raise MigrationError(name, f"there is no such migration in {directory}")


def create_file(directory: Path, word: str) -> Path:
    """Write a file with empty functions, and return its path. Creates the directory if missing.

    Raises InvalidRequestError, MigrationError if the name is taken, and OSError.
    """
    if not _WORD.fullmatch(word):
        reason = "must have 1 to 80 characters: a to z, 0 to 9 and _"
        raise InvalidRequestError("name", f"{reason}, not {word[:80]!r}")
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
    for file in read_files(directory):
        if file.word == word:
            raise MigrationError(word, f"{file.path} has this name: choose another")
    moment = datetime.now(timezone.utc).strftime("%Y%m%d%H%M%S")
    path = directory / f"{moment}_{word}.py"
    with path.open("x", encoding="utf-8") as new:
        new.write(_TEMPLATE.format(word=word.replace("_", " ").strip().capitalize()))
    return path
