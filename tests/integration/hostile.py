"""Hostile command lines and environments, each with a word that the refusal must contain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["CASES", "HERE", "NOBODY", "SECRET", "Case"]

# Part of every credential, and must appear in no output.
SECRET: Final = "opensesame"  # noqa: S105
NOBODY: Final = f"mongodb://ann:{SECRET}@127.0.0.1:1/?replicaSet=rs0"
# Replaced by the tests' replica set.
HERE: Final = "the replica set"
LONG: Final = "x" * 100_000


@dataclass(frozen=True)
class Case:
    """A command line, and a word of the error that names what is wrong."""

    program: str
    arguments: tuple[str, ...]
    names: str
    environment: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return ascii(" ".join([*variables, self.program, *self.arguments])[:120])


BAD_URIS = {
    "": "uri",
    " ": "uri",
    "nonsense": "mongodb://",
    "http://127.0.0.1/": "mongodb://",
    "mongodb://": "uri",
    "mongodb:///": "uri",
    "mongodb://127.0.0.1:port/": "uri",
    "mongodb://127.0.0.1:99999/": "uri",
    "mongodb://127.0.0.1/?tls=True": "tls",
    "mongodb://127.0.0.1/?w=0": "uri",
    "mongodb://127.0.0.1/?w=majorty": "uri",
    "mongodb://127.0.0.1/?no=such": "no",
    "mongodb://a,b/?directConnection=true": "uri",
    f"mongodb://ann:{SECRET}/{SECRET}@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}@{SECRET}@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}?{SECRET}=1@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}#{SECRET}@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}:{SECRET}@127.0.0.1/": "quote_plus",
    f"mongodb://ann:{SECRET}@127.0.0.1/?tls=1": "tls",
    f"mongodb://ann:{SECRET}%zz@127.0.0.1/": "quote_plus",
    f"mongodb+srv://ann:{SECRET}@one,two/": "uri",
    f"mongodb://127.0.0.1/?{LONG}": "uri",
}
BAD_DATABASES = ("", " ", "a.b", "a/b", "a\\b", 'a"b', "a b", "$cmd", "x" * 64, "é" * 32, "\udcff")
BAD_TIMEOUTS = ("0", "-1", "nan", "inf", "1e9", "", "soon", "1,5", "0x10", "--json", "1" * 500)
COMMANDS = (
    ("init",),
    ("verify",),
    ("roles", "--create"),
    ("status",),
    ("users",),
    ("balance", "user"),
    ("history", "user"),
    ("audit", "user"),
    ("grant", "user", "5", "--action=support", "--idempotency-key=k"),
    ("refund", "user", "5", "--action=support", "--idempotency-key=k"),
    ("charge", "user", "talk", "--amount=5", "--idempotency-key=k"),
    ("create-user", "user", "--idempotency-key=k"),
    ("archive", "--older-than=6mo"),
    ("cleanup",),
    ("erase", "--user=user", "--requested-by=me", "--yes"),
    ("export", "--output=rows.csv"),
    ("report", "page.html", "--png=page.png"),
)
BAD_IDENTIFIERS = ("", "a\x00", "a\nb", "\x1b[31m", "\udcff", "x" * 256)
BAD_COUNTS = ("0", "-1", "1.5", "1e3", "0x10", "1_000", "٣", "", "many", "1" * 5000)
BAD_MOMENTS = ("", "yesterday", "2026-13-01", "2026-02-30", "31.01.2026", "1" * 500, "\udcff")
BAD_JSON = ("", "{", "[1]", "7", "null", '{"a": NaN}', '{"a": Infinity}', "[" * 50_000, SECRET)


def of_every_command() -> Iterator[Case]:
    """Arguments that every command accepts."""
    for command in COMMANDS:
        # All other commands share the same code.
        for uri, names in list(BAD_URIS.items())[:: 1 if command in COMMANDS[:3] else 4]:
            yield Case("credit-mongo", (*command, "--uri", uri), names)
        for database in BAD_DATABASES:
            where = ("--uri", HERE, "--database", database)
            yield Case("credit-mongo", (*command, *where), "database")
        for timeout in BAD_TIMEOUTS:
            where = ("--uri", HERE, "--timeout", timeout)
            yield Case("credit-mongo", (*command, *where), "timeout")
        yield Case("credit-mongo", (*command, "--uri", NOBODY, "--timeout", "0.1"), "127.0.0.1:1")
        for wrong in (
            "--no-such",
            "--dry",
            "--uri",
            "--database",
            "--json=5",
            "-x",
            "extra",
            NOBODY,
        ):
            yield Case("credit-mongo", (*command, wrong), "--help")
    for wrong in ("no-such", "", "--no-such", "INIT", "init.py", NOBODY, "\udcff", LONG):
        yield Case("credit-mongo", (wrong,), "--help")


def of_one_command() -> Iterator[Case]:
    """Arguments that only one command accepts."""
    yield Case("credit-mongo", ("roles", "--dry-run"), "--create")
    for database in BAD_DATABASES:
        yield Case("credit-mongo", ("roles", "--database", database), "database")
    verify = ("verify", "--uri", HERE)
    for key_ttl in (*BAD_TIMEOUTS, "99999999"):
        yield Case("credit-mongo", (*verify, "--key-ttl", key_ttl), "key-ttl")
    for user in ("", "a\x00", "a\nb", "\x1b[31m", "\udcff", "x" * 256):
        yield Case("credit-mongo", (*verify, "--user", user), "user")
    repair = (*verify, "--repair")
    for missing in (
        (),
        ("--operator", "a"),
        ("--reason", "a"),
        ("--operator", "", "--reason", "a"),
    ):
        yield Case("credit-mongo", (*repair, *missing), "--operator")
    for wrong in ("a\x00", "a\nb", "\x1b[31m", "\udcff", "x" * 256):
        yield Case("credit-mongo", (*repair, "--operator", wrong, "--reason", "a"), "operator")
    for wrong in ("a\x00", "\x1b[31m", "\udcff", LONG):
        yield Case("credit-mongo", (*repair, "--operator", "a", "--reason", wrong), "reason")
    for alone in ("--operator=a", "--reason=a", "--dry-run"):
        yield Case("credit-mongo", (*verify, alone), "--repair")


def _asked(command: str, *arguments: str, names: str) -> Case:
    return Case("credit-mongo", (command, "--uri", HERE, *arguments), names)


def of_accounts() -> Iterator[Case]:
    """Commands on one user, or on all."""

    posting = ("--action=support", "--idempotency-key=k")
    for wrong in BAD_IDENTIFIERS:
        for command in ("balance", "history", "audit"):
            yield _asked(command, "--", wrong, names="USER")
        for command in ("grant", "refund"):
            yield _asked(command, wrong, "5", *posting, names="USER")
            yield _asked(
                command, "user", "5", f"--action={wrong}", "--idempotency-key=k", names="action"
            )
            yield _asked(
                command, "user", "5", "--action=a", f"--idempotency-key={wrong}", names="key"
            )
        yield _asked("charge", wrong, "talk", "--amount=5", "--idempotency-key=k", names="USER")
        yield _asked("charge", "user", wrong, "--amount=5", "--idempotency-key=k", names="ACTION")
        yield _asked("users", "--tier", wrong, names="tier")
        yield _asked("users", "--cursor", wrong, names="cursor")
        yield _asked("history", "user", "--action", wrong, names="action")


def of_tiers() -> Iterator[Case]:
    """Opening accounts and changing tiers."""
    for wrong in BAD_IDENTIFIERS:
        yield _asked("create-user", "--idempotency-key=k", "--", wrong, names="USER")
    for wrong in BAD_COUNTS[1:]:
        yield _asked("create-user", "user", f"--credits={wrong}", names="--credits")
    for wrong in BAD_MOMENTS:
        yield _asked("create-user", "user", f"--expires-at={wrong}", names="--expires-at")
    yield _asked("create-user", "user", "--tier=gold", names="--config")
    for command in (("upgrade", "user", "gold"), ("downgrade", "user", "free"), ("renew", "user")):
        yield _asked(*command, names="--config")
        yield _asked(*command, "--config=no-such-file", "--no-expiry", names="no-such-file")


def of_amounts() -> Iterator[Case]:
    """Amounts, and what they are for."""
    posting = ("--action=support", "--idempotency-key=k")
    for wrong in BAD_COUNTS:
        for command in ("grant", "refund"):
            yield _asked(
                command,
                "--action=a",
                "--idempotency-key=k",
                "--",
                "user",
                wrong,
                names="AMOUNT",
            )
        yield _asked(
            "charge", "user", "talk", f"--amount={wrong}", "--idempotency-key=k", names="amount"
        )
        for name, *of in (("users",), ("history", "user"), ("audit", "user")):
            yield _asked(name, *of, f"--limit={wrong}", names="limit")
    yield _asked("grant", "user", str(2**53), *posting, names="AMOUNT")
    for wrong in BAD_COUNTS[1:]:
        yield _asked("users", f"--below={wrong}", names="below")
    for wrong in BAD_JSON:
        yield _asked("grant", "user", "5", *posting, "--metadata", wrong, names="metadata")
    for wrong in ("n", "n=", "=1", "n=nan", "n=inf", "n=1 2", "n=ten"):
        yield _asked(
            "charge", "user", "talk", "--amount=5", "--variable", wrong, names="--variable"
        )
    yield _asked("charge", "user", "talk", names="--amount")
    for wrong in BAD_IDENTIFIERS:
        yield _asked("refund", "user", "5", *posting, "--transaction", wrong, names="--transaction")
    for status in ("", "ok", "SUCCESS", '{"$ne": "failed"}'):
        yield _asked("audit", "user", f"--status={status}", names="status")
    for cursor in ("", "bm9uZQ", "\udcff", "e30=", LONG):
        yield _asked("history", "user", f"--cursor={cursor}", names="cursor")


def of_records() -> Iterator[Case]:
    """Commands that read or remove many rows."""

    for wrong in BAD_IDENTIFIERS:
        yield _asked("erase", f"--user={wrong}", "--requested-by=me", "--yes", names="user")
        yield _asked(
            "erase", "--user=u", f"--requested-by={wrong}", "--yes", names="--requested-by"
        )
        yield _asked("export", f"--user={wrong}", "--output=rows.csv", names="user")
    for age in ("", "6", "mo", "-6mo", "1.5y", "0x6d", "2999-01-01", "20250228", "1" * 500):
        yield _asked("archive", f"--older-than={age}", names="--older-than")
    archive = ("archive", "--older-than=6mo")
    for wrong in ("", "csv", "BSON"):
        yield _asked(*archive, "--to=rows", f"--format={wrong}", names="format")
        yield _asked(*archive, f"--only={wrong}", names="--only")
    yield _asked(*archive, "--format=bson", names="--to")
    for directory in ("/no/such/place", "/dev/null", "/proc", "/etc", "x" * 300, "a\x00b"):
        yield _asked(*archive, f"--to={directory}", names="")
    yield _asked("archive", names="--older-than")
    yield _asked("erase", "--user=u", "--yes", names="--requested-by")
    yield _asked("erase", "--requested-by=me", "--yes", names="--user")
    for grace in ("-1", "nan", "inf", "1e300", "", "soon", "--json"):
        yield _asked("cleanup", f"--grace={grace}", names="grace")


def of_files() -> Iterator[Case]:
    """Commands that write files, or that take a period or a configuration."""
    exported, reported = ("export", "--output=rows.csv"), ("report", "page.html")
    for command in (exported, reported, ("history", "user"), ("audit", "user")):
        for wrong in BAD_MOMENTS:
            yield _asked(*command, f"--from={wrong}", names="--from")
            yield _asked(*command, f"--to={wrong}", names="--to")
    for exports in (exported, reported):
        yield _asked(*exports, "--from=2026-02-01", "--to=2026-01-01", names="--to")
    for kind in ("", "xml", "CSV", "json", LONG):
        yield _asked(*exported, f"--format={kind}", names="--format")
    yield _asked("export", "--json", names="--output")
    yield _asked("export", "--output=rows.xls", names="--format")
    for path in ("/", "/no/such/rows", "/dev/null/rows", "/proc/rows", "x" * 300, "a\x00b"):
        yield _asked("export", f"--output={path}", "--format=csv", names=path[:4].strip("a\x00b"))
        yield _asked("report", path, names=path[:4].strip("a\x00b"))
        yield _asked("report", f"--png={path}", names=path[:4].strip("a\x00b"))
    yield _asked("report", "same", "--png=same", names="same")
    for top in (*BAD_COUNTS, "101"):
        yield _asked("report", f"--top={top}", names="")
    for config in ("no-such-file", "/", "/dev/null", "/etc/passwd", "/dev/zero", LONG, "a\x00b"):
        for name, *of in (("status",), ("users",), ("balance", "user"), ("cleanup",), reported):
            yield _asked(name, *of, f"--config={config}", names="")


def of_the_replay() -> Iterator[Case]:
    """The replay of a trace."""
    # Without a URI it starts a server of its own, and without a name it takes a new database.
    for uri in list(BAD_URIS)[1::3]:
        yield Case("replay", ("--uri", uri), "error: ")
    for database in BAD_DATABASES[1::3]:
        yield Case("replay", ("--uri", HERE, "--database", database), "database")
    for option in ("--users", "--callers", "--records"):
        for number in ("0", "-1", "1.5", "nan", "", "many", "--json"):
            yield Case("replay", ("--uri", HERE, option, number), option)
    for seed in ("", "x", "1.5"):
        yield Case("replay", ("--uri", HERE, "--seed", seed), "--seed")
    for trace in ("no-such-file", "/", "/dev/null", "/etc/passwd", LONG, "\udcff"):
        yield Case("replay", ("--uri", HERE, trace), "error: ")
    yield Case("replay", ("a", "b"), "unrecognized")
    yield Case("replay", ("--no-such",), "unrecognized")


def of_the_local_replica_set() -> Iterator[Case]:
    """``python -m credit_mongo.local``."""
    for members in ("0", "2", "-1", "4", "1.5", "", "three", "1" * 5000):
        yield Case("local", ("--members", members), "--members")
    for port in ("0", "-1", "65536", "1e3", "", "http", "1" * 5000):
        yield Case("local", ("--port", port), "port")
    yield Case("local", ("--members", "3", "--port", "65534"), "port")
    for directory in (str(Path(__file__)), "/proc/no-such", "/dev/null/x", LONG):
        yield Case("local", ("--data", directory), "data directory")
    for wrong in ("--no-such", "extra", "--port", "--members", "--data", "-x"):
        yield Case("local", (wrong,), "error: ")


def of_the_benchmarks() -> Iterator[Case]:
    """``python -m benchmarks``."""
    for option in ("--pools", "--callers"):
        for numbers in ("0", "-1", "", "x", "1,", "1,,2", "1.5", "1" * 5000):
            yield Case("benchmarks", (option, numbers), option)
    for names in ("no-such", "callers,", "", "1", LONG, "\udcff"):
        yield Case("benchmarks", ("--only", names), "--only")
    yield Case("benchmarks", ("--publish", "--quick"), "--publish")
    yield Case("benchmarks", ("--publish", "--only", "latency"), "--publish")
    for option in ("--rounds", "--latency-charges", "--growth-rows", "--growth-charges"):
        for number in ("0", "-1", "", "x", "1.5"):
            yield Case("benchmarks", (option, number), option)
    for option in ("--seconds", "--warm-up-seconds", "--cache-gigabytes"):
        for number in ("0", "-1", "", "x", "nan", "inf"):
            yield Case("benchmarks", (option, number), option)
    for wrong in (("--loop", "gevent"), ("--no-such",), ("extra",), ("--json",), ("--only",)):
        yield Case("benchmarks", wrong, "error: ")


def of_the_test_image() -> Iterator[Case]:
    """``scripts/build_test_image.py``, as far as it goes without Docker."""
    for tag in ("", " ", "-x", "--help", "UPPER", "a b", "a\x00b", "\x1b[31m", "é", "\udcff", LONG):
        yield Case("build_test_image", (f"--tag={tag}",), "--tag")
    for wrong in ("--no-such", "extra", "--tag", "-x", "\udcff", LONG):
        yield Case("build_test_image", (wrong,), "error: ")
    for mongod in ("/no/such", "/", "/dev/null", " ", "\udcff", LONG, str(Path(__file__))):
        yield Case("build_test_image", (), "mongod", {"CREDIT_MONGO_MONGOD": mongod})


def of_the_wheel() -> Iterator[Case]:
    """``scripts/check_wheel.py``, before it builds anything."""
    for directory in ("", " ", "a\x00b", "/dev/null", str(Path(__file__)), "/etc/passwd/x", LONG):
        yield Case("check_wheel", (f"--keep={directory}",), "--keep")
    for wrong in ("--no-such", "extra", "--keep", "-x", "\udcff", LONG):
        yield Case("check_wheel", (wrong,), "error: ")


def of_the_environment() -> Iterator[Case]:
    """Settings that the environment supplies."""
    for command in COMMANDS[:3]:
        for uri, names in BAD_URIS.items():
            yield Case("credit-mongo", command, names, {"MONGODB_URI": uri})
        for database in BAD_DATABASES:
            environment = {"MONGODB_URI": HERE, "MONGODB_DATABASE": database}
            yield Case("credit-mongo", command, "database", environment)
        environment = {"MONGODB_URI": NOBODY}
        yield Case("credit-mongo", (*command, "--timeout", "0.1"), "127.0.0.1:1", environment)
    for uri in list(BAD_URIS)[2::6]:
        yield Case("replay", (), "error: ", {"MONGODB_URI": uri})
    programs: dict[str, tuple[str, ...]] = {"local": (), "replay": ("--records", "1")}
    for program, arguments in programs.items():
        for mongod in (
            *("/no/such/mongod", "no-such", "/", "/dev/null", " ", "\udcff", "/etc/passwd", LONG),
            *(str(Path(__file__)), "/bin/false", "/bin/true", "mongod; echo"),
        ):
            environment = {"CREDIT_MONGO_MONGOD": mongod}
            names = "mongod" if mongod not in ("/bin/false", "/bin/true") else mongod
            yield Case(program, arguments, names, environment)


CASES = [
    *of_every_command(),
    *of_one_command(),
    *of_accounts(),
    *of_tiers(),
    *of_amounts(),
    *of_records(),
    *of_files(),
    *of_the_replay(),
    *of_the_local_replica_set(),
    *of_the_benchmarks(),
    *of_the_test_image(),
    *of_the_wheel(),
    *of_the_environment(),
]
