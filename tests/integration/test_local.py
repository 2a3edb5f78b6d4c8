"""The promises of `credit_mongo.local`: a real replica set, of which nothing stays behind."""

from __future__ import annotations

import asyncio
import importlib.metadata
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from pymongo import AsyncMongoClient

from credit_mongo.errors import InvalidRequestError, StorageError
from credit_mongo.local import LocalReplicaSet, find_mongod
from credit_mongo.local import keeper as local_keeper
from credit_mongo.local import members as local_members
from credit_mongo.private_files import why_unsafe

PATIENCE_SECONDS = 60.0


@pytest.fixture
def temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which all temporary directories are made, here and in subprocesses."""
    temporary_directory = tmp_path / "temporary"
    temporary_directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary_directory))
    monkeypatch.setenv("TMPDIR", str(temporary_directory))
    return temporary_directory


def processes_of(temporary_directory: Path) -> list[str]:
    """Return the command lines, of any process of this machine, that name the directory."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, check=True)
    return [
        line for line in listing.stdout.decode().splitlines() if str(temporary_directory) in line
    ]


def left_by(temporary_directory: Path) -> list[str]:
    """Return all that still runs or lies there."""
    return processes_of(temporary_directory) + [str(path) for path in temporary_directory.iterdir()]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def client_of(replica_set: LocalReplicaSet) -> AsyncMongoClient[dict[str, Any]]:
    return AsyncMongoClient(replica_set.uri, serverSelectionTimeoutMS=30_000)


def command_line(*arguments: str) -> subprocess.Popen[str]:
    """Run ``python -m credit_mongo.local`` in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-m", "credit_mongo.local", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
async def taken_port() -> AsyncIterator[int]:
    """A port on which another program listens."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def test_one_member_runs_transactions_and_leaves_nothing(temporary_directory: Path) -> None:
    """The smallest set is a real replica set, takes parameters, and is gone with the block."""
    async with LocalReplicaSet(parameters={"enableTestCommands": "1"}) as replica_set:
        async with client_of(replica_set) as client, client.start_session() as session:
            names = client["shop"]["names"]
            async with await session.start_transaction():
                await names.insert_one({"_id": 1}, session=session)
                await names.insert_one({"_id": 2}, session=session)
            assert await names.count_documents({}) == 2
            point = {"configureFailPoint": "failCommand", "mode": "off"}
            assert (await client.admin.command(point))["ok"] == 1
        (member,) = replica_set.members
        assert member.running
        assert str(temporary_directory) in str(member.directory)
        assert replica_set.uri == f"mongodb://127.0.0.1:{member.port}/?replicaSet=rs0"
    assert left_by(temporary_directory) == []
    assert not member.running
    with pytest.raises(StorageError, match="stopped"):
        await member.restart()


async def test_three_members_survive_the_loss_of_their_primary(temporary_directory: Path) -> None:
    """There are a primary and two secondaries, also after a kill, a restart and a pause."""
    async with LocalReplicaSet(members=3) as replica_set, client_of(replica_set) as client:
        await client.admin.command("ping")
        first = await client.primary
        assert first is not None
        members = {member.port: member for member in replica_set.members}

        async def meet_the_others() -> None:
            while members.keys() - {first[1]} != {port for _, port in await client.secondaries}:  # noqa: ASYNC110 - a change of the driver's view wakes nobody
                await asyncio.sleep(0.05)

        # The driver has met the primary, and meets the others one after another.
        await asyncio.wait_for(meet_the_others(), 30)

        await members[first[1]].kill()
        with pytest.raises(StorageError, match="is not running"):
            members[first[1]].pause()
        await client["shop"]["names"].insert_one({"_id": 1})  # waits for the new primary
        second = await client.primary
        assert second is not None
        assert second != first
        with pytest.raises(StorageError, match="is not running"):
            await replica_set.wait_until_ready()

        await members[first[1]].restart()
        await replica_set.wait_until_ready()
        members[first[1]].pause()
        assert members[first[1]].running
        with pytest.raises(StorageError, match="no primary with all its secondaries"):
            await replica_set.wait_until_ready(timeout_seconds=1)
        members[first[1]].resume()
        await replica_set.wait_until_ready()
        members[first[1]].pause()  # what can't obey must not stay either
    assert left_by(temporary_directory) == []


async def test_nothing_is_left_after_an_exception_in_the_block(temporary_directory: Path) -> None:
    """The exception arrives as it is, and the set is gone by then, killed members included."""

    async def fail() -> NoReturn:
        async with LocalReplicaSet() as replica_set:
            await replica_set.members[0].kill()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert left_by(temporary_directory) == []


@pytest.mark.parametrize("seconds", [0, 0.02, 0.1, 0.4, 1])
async def test_nothing_is_left_after_a_cancellation_while_starting(
    temporary_directory: Path, seconds: float
) -> None:
    """Whatever the start has come to, who awaited the cancelled task finds nothing."""
    starting = asyncio.create_task(LocalReplicaSet(members=3).__aenter__())
    await asyncio.sleep(seconds)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert left_by(temporary_directory) == []


async def test_cancelling_all_tasks_leaves_nothing(temporary_directory: Path) -> None:
    """So does asyncio.run on an interrupt: also the set's own tasks are cancelled then."""
    started = asyncio.Event()
    before = asyncio.all_tasks()

    async def use() -> None:
        async with LocalReplicaSet():
            started.set()
            await asyncio.Event().wait()

    using = asyncio.create_task(use())
    await asyncio.wait_for(started.wait(), PATIENCE_SECONDS)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    assert left_by(temporary_directory) == []


async def test_nothing_is_left_if_a_keeper_was_killed(temporary_directory: Path) -> None:
    """Even without the process that would have ended the mongod, leaving the block does."""
    async with LocalReplicaSet() as replica_set:
        os.kill(os.getpgid(replica_set.members[0].pid), signal.SIGKILL)
    assert left_by(temporary_directory) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_the_uri_and_a_signal_ends_it_cleanly(
    temporary_directory: Path, number: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM are the usual ways to stop it: exit code 0, nothing left."""
    command = command_line()
    assert command.stdout is not None
    uri = command.stdout.readline()
    assert uri.startswith("mongodb://127.0.0.1:")
    assert uri.endswith("/?replicaSet=rs0\n")
    os.killpg(command.pid, number)  # as a terminal does: to all in the group
    output, explanation = command.communicate(timeout=PATIENCE_SECONDS)
    assert left_by(temporary_directory) == []
    assert command.returncode == 0
    assert output == ""
    assert "Ctrl-C" in explanation
    assert f"\nexport MONGODB_URI='{uri.strip()}'\n" in explanation
    assert "Traceback" not in explanation


def test_an_interrupt_while_the_command_starts_leaves_nothing(temporary_directory: Path) -> None:
    """The first seconds are when people notice that they wanted something else."""
    command = command_line("--members", "3")
    until(lambda: bool(processes_of(temporary_directory)))
    os.killpg(command.pid, signal.SIGINT)
    output, explanation = command.communicate(timeout=PATIENCE_SECONDS)
    assert left_by(temporary_directory) == []
    assert command.returncode == 0
    assert output == ""
    assert "Traceback" not in explanation


def test_nothing_is_left_after_a_kill_9_of_the_command(temporary_directory: Path) -> None:
    """No code of the killed process runs, so the keepers must see it."""
    command = command_line()
    assert command.stdout is not None
    assert command.stdout.readline().startswith("mongodb://")
    assert len(processes_of(temporary_directory)) == 2  # a mongod and its keeper
    command.kill()
    command.communicate(timeout=PATIENCE_SECONDS)
    until(lambda: left_by(temporary_directory) == [])


def test_the_command_tells_errors_in_one_line(temporary_directory: Path, taken_port: int) -> None:
    """A wrong port is no reason for a traceback: one line on stderr, exit code 2."""
    command = command_line("--port", str(taken_port))
    output, explanation = command.communicate(timeout=PATIENCE_SECONDS)
    assert command.returncode == 2
    assert output == ""
    assert len(explanation.splitlines()) == 1
    assert "Address already in use" in explanation
    assert left_by(temporary_directory) == []


async def test_a_port_lost_to_another_program_is_replaced(
    temporary_directory: Path, taken_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between choosing a free port and listening on it, somebody else may take it."""
    choose = local_members._free_port
    ports = iter([taken_port])
    monkeypatch.setattr(local_members, "_free_port", lambda: next(ports, 0) or choose())
    async with LocalReplicaSet() as replica_set:
        assert replica_set.members[0].port != taken_port
    assert left_by(temporary_directory) == []


def test_free_ports_are_free_and_not_given_to_outgoing_connections() -> None:
    """A member that was killed must find its port free when it is restarted."""
    ports = {local_members._free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(20_000 <= port < 32_000 for port in ports)
    for port in ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_unusable_CREDIT_MONGO_MONGOD_is_an_error_with_the_remedy(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names a mongod never gets another one silently."""
    for wrong in (tmp_path / "absent", tmp_path, Path(__file__)):
        monkeypatch.setenv("CREDIT_MONGO_MONGOD", str(wrong))
        with pytest.raises(StorageError, match=r'pip install "credit-mongo\[local\]"') as caught:
            find_mongod()
        assert str(wrong) in str(caught.value)


def test_mongod_is_taken_from_the_environment_then_PATH_then_the_package(  # noqa: N802
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is documented; without any of them, the error names the remedy."""
    named = program(tmp_path / "named", "exit")
    on_path = program(tmp_path / "mongod", "exit")
    packaged = tmp_path / "package" / "mongod"
    packaged.parent.mkdir()
    packaged.write_bytes(b"")  # as wheels have it: without a run bit

    class Package:
        def locate_file(self, path: str) -> Path:
            assert path == "fiftyone/db/bin/mongod"
            return packaged

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _: Package())
    monkeypatch.setenv("CREDIT_MONGO_MONGOD", str(named))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_mongod() == named
    monkeypatch.delenv("CREDIT_MONGO_MONGOD")
    assert find_mongod() == on_path
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert find_mongod() == packaged
    assert os.access(packaged, os.X_OK)

    packaged.unlink()
    with pytest.raises(StorageError, match="CREDIT_MONGO_MONGOD"):
        find_mongod()

    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(StorageError, match=r'pip install "credit-mongo\[local\]"'):
        find_mongod()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'libcrypto.so.3: cannot open shared object file' >&2; exit 127", "libcrypto"),
        ('echo \'{"s":"E","msg":"why"}\'; echo \'{"s":"I","msg":"bye"}\'; exit 1', '"why"}$'),
        ("exit 14", "exit code 14"),
    ],
)
async def test_a_mongod_that_ends_at_once_is_an_error_with_its_own_words(
    temporary_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    reason: str,
) -> None:
    """A missing library is told at once, not after the time for a start, and nothing is left."""
    fake = program(tmp_path / "mongod", script)
    monkeypatch.setenv("CREDIT_MONGO_MONGOD", str(fake))
    with pytest.raises(StorageError, match=reason):
        await LocalReplicaSet(members=3).__aenter__()
    assert left_by(temporary_directory) == []


async def test_a_file_that_cannot_be_executed_is_an_error(
    temporary_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program for another machine has a run bit, too."""
    fake = tmp_path / "mongod"
    fake.write_bytes(b"\x7fELF of another kind")
    fake.chmod(0o755)
    monkeypatch.setenv("CREDIT_MONGO_MONGOD", str(fake))
    with pytest.raises(StorageError, match="Exec format error"):
        await LocalReplicaSet().__aenter__()
    assert left_by(temporary_directory) == []


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.cases(1)
async def test_kept_data_is_there_after_a_restart_on_other_ports(
    temporary_directory: Path, tmp_path: Path, size: int
) -> None:
    """A given directory outlives the set, and needs none of the former ports to serve again."""
    data = tmp_path / "data"
    replica_set = LocalReplicaSet(size, data)
    async with replica_set:
        ports = {member.port for member in replica_set.members}
        async with client_of(replica_set) as client:
            await client["shop"]["names"].insert_one({"_id": "kept"})
    assert processes_of(data) == []

    async with replica_set, client_of(replica_set) as client:
        assert ports != {member.port for member in replica_set.members}
        assert await client["shop"]["names"].find_one() == {"_id": "kept"}
        await client["shop"]["names"].insert_one({"_id": "written"})
    assert processes_of(data) == []
    assert left_by(temporary_directory) == []

    with pytest.raises(StorageError, match=f"the data of {size} members, not of {4 - size}"):
        await LocalReplicaSet(4 - size, data).__aenter__()


async def test_no_two_sets_share_a_directory_or_an_object(
    temporary_directory: Path, tmp_path: Path
) -> None:
    """Both would lose the first set; so the second is refused, and the first goes on."""
    async with LocalReplicaSet(1, tmp_path / "data") as replica_set:
        with pytest.raises(StorageError, match="DBPathInUse"):
            await LocalReplicaSet(1, tmp_path / "data").__aenter__()
        with pytest.raises(StorageError, match="already"):
            await replica_set.__aenter__()
        await replica_set.wait_until_ready()
    assert processes_of(tmp_path) == []
    assert left_by(temporary_directory) == []


async def test_wrong_arguments_are_refused_before_anything_starts(
    temporary_directory: Path,
) -> None:
    """Two members can't elect a primary when one is gone; ports end at 65535."""
    with pytest.raises(InvalidRequestError, match="members"):
        LocalReplicaSet(2)
    for port in (0, 65_534):
        with pytest.raises(InvalidRequestError, match="port"):
            LocalReplicaSet(3, port=port)
    with pytest.raises(StorageError, match="data directory"):
        await LocalReplicaSet(1, Path(__file__)).__aenter__()
    with pytest.raises(StorageError, match="nonsense"):
        await LocalReplicaSet(parameters={"nonsense": "1"}).__aenter__()
    assert left_by(temporary_directory) == []


# --- Other users of the machine -------------------------------------------------------------------


async def test_the_temporary_directory_is_there_before_a_process_shows_its_name(
    temporary_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody can read arguments: whoever learns the name finds the directory taken, and shut."""
    start = asyncio.create_subprocess_exec
    seen: list[tuple[int, int]] = []

    async def look_and_start(*command: str, **options: Any) -> asyncio.subprocess.Process:
        [root] = {
            Path(part).parent for part in command if part.startswith(str(temporary_directory))
        }
        status = root.lstat()
        seen.append((status.st_uid, status.st_mode))
        return await start(*command, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", look_and_start)
    before = os.umask(0)
    try:
        async with LocalReplicaSet() as replica_set:
            directory = replica_set.members[0].directory
            modes = [path.lstat().st_mode & 0o077 for path in directory.glob("**/*")]
    finally:
        os.umask(before)
    assert seen == [(os.geteuid(), stat.S_IFDIR | 0o700)]
    assert len(modes) > 5
    assert not any(modes)
    assert left_by(temporary_directory) == []


def keeper(directory: Path, kept: str) -> str:
    """What a keeper of this process answers to the first start."""
    command = [sys.executable, "-I", "-S", local_keeper.__file__]
    done = subprocess.run(
        [*command, str(os.getpid()), kept, str(directory), "/bin/echo"],
        input="20000\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    return done.stdout + done.stderr


def test_a_temporary_directory_that_somebody_made_before_is_not_taken(tmp_path: Path) -> None:
    """Nor is it removed: it is not ours."""
    planted, victim = tmp_path / "member-0", tmp_path / "victim"
    planted.mkdir()
    (planted / "mongod.log").symlink_to(victim)
    assert "File exists" in keeper(planted, "")
    assert not victim.exists()
    assert (planted / "mongod.log").is_symlink()


def test_a_link_in_the_place_of_the_log_is_not_followed(tmp_path: Path) -> None:
    """It may lead to a file that is run at the next login."""
    victim = tmp_path / "victim"
    victim.write_text("mine\n")
    for target in (victim, tmp_path / "absent"):
        (tmp_path / "mongod.log").symlink_to(target)
        assert "symbolic links" in keeper(tmp_path, "kept")
        (tmp_path / "mongod.log").unlink()
    assert victim.read_text() == "mine\n"
    assert not (tmp_path / "absent").exists()


async def test_a_data_directory_is_its_owner_s_alone_whatever_the_umask(
    temporary_directory: Path, tmp_path: Path
) -> None:
    """All that is made on the way to it, too."""
    data = tmp_path / "deep" / "data"
    before = os.umask(0)
    try:
        async with LocalReplicaSet(1, data):
            pass
    finally:
        os.umask(before)
    made = [data.parent, data, *data.glob("**/*")]
    assert len(made) > 5
    assert [path for path in made if path.lstat().st_mode & 0o077] == []
    # A member's directory of before, which others could read, is closed to them.
    (data / "member-0").chmod(0o755)
    async with LocalReplicaSet(1, data) as replica_set:
        assert replica_set.members[0].directory.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@pytest.mark.parametrize("name", ["data", "data/member-0"])
async def test_a_data_directory_that_others_may_write_to_is_refused(
    temporary_directory: Path, tmp_path: Path, name: str, mode: int
) -> None:
    """They could have put a link in it; the sticky bit does not keep them from that."""
    data = tmp_path / "data"
    (data / "member-0").mkdir(parents=True)
    (tmp_path / name).chmod(mode)
    with pytest.raises(
        StorageError, match=f"{name} can be written by other users .*chmod go-w on it"
    ):
        await LocalReplicaSet(1, data).__aenter__()
    assert list((data / "member-0").iterdir()) == []


async def test_a_member_s_directory_that_is_a_link_is_refused(
    temporary_directory: Path, tmp_path: Path
) -> None:
    """The data would go wherever it leads."""
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    data.mkdir(0o700)
    elsewhere.mkdir(0o700)
    (data / "member-0").symlink_to(elsewhere)
    with pytest.raises(StorageError, match="member-0 is a link"):
        await LocalReplicaSet(1, data).__aenter__()
    assert list(elsewhere.iterdir()) == []


async def test_no_directory_is_used_that_anybody_could_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where everybody may write and no sticky bit is set, any name can be given to another."""
    temporary_directory = tmp_path / "open"
    temporary_directory.mkdir()
    temporary_directory.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary_directory))
    for data in (None, temporary_directory / "data"):
        with pytest.raises(StorageError, match="no sticky bit"):
            await LocalReplicaSet(1, data).__aenter__()
    assert processes_of(temporary_directory) == []
    temporary_directory.chmod(0o1777)
    async with LocalReplicaSet() as replica_set:
        assert replica_set.members[0].directory.is_relative_to(temporary_directory)


def test_a_directory_of_another_user_is_unsafe_and_root_s_is_not() -> None:
    """Whoever owns it can put anything in it; root can anyway."""
    uid = os.geteuid()
    told = {
        owner: why_unsafe(os.stat_result((stat.S_IFDIR | 0o755, 1, 1, 2, owner, 0, 0, 0, 0, 0)))
        for owner in (uid, 0, uid + 1)
    }
    assert told.pop(uid + 1) == (
        "belongs to another user: run as its owner, or choose a directory of your own"
    )
    assert set(told.values()) == {None}
