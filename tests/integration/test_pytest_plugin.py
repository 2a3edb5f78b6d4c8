"""The pytest plugin in suites of others: pytest in a process of its own, with what it installs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TWO_TESTS = """
from datetime import timedelta
import pytest
{imports}

@pytest.fixture
def credit_config():
    from credit_mongo import CreditConfig
    return CreditConfig(costs={{"post": {{"default": 3}}}})

NAMES = set()

{mark}
async def test_charge(credit_ledger, credit_clock, credit_database):
    NAMES.add(credit_database.name)
    user = await credit_ledger.create_user("ann", credits=10)
    credit_clock.advance(timedelta(days=40))
    charge = await credit_ledger.charge("ann", "post")
    assert (charge.cost, charge.created_at - user.created_at) == (3, timedelta(days=40))
    end = credit_clock() + timedelta(days=1)
    await credit_ledger.grant("ann", 5, action="trial", expires_at=end)
    async with credit_ledger.hold("ann", "post", amount=8) as hold:
        hold.use(amount=6)
    assert hold.result.balance_after == 6
    await credit_ledger.grant("ann", 9, action="trial", expires_at=end)
    credit_clock.advance(timedelta(days=1))
    assert await credit_ledger.get_balance("ann") == 6

{mark}
async def test_another_database(credit_ledger, credit_database, credit_client):
    assert credit_database.name not in NAMES
    assert not NAMES & set(await credit_client.list_database_names())
    await credit_ledger.create_user("ann", credits=1)
    assert await credit_ledger.get_balance("ann") == 1
"""


@pytest.fixture
def others(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of somebody else's, where warnings are errors, but for one of pytest-asyncio's."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.delenv("PYTEST_PLUGINS", raising=False)
    pytester.makeini("[pytest]\nfilterwarnings =\n  error\n  ignore:The configuration option\n")
    return pytester


@pytest.mark.parametrize("loop_scope", ["function", "class", "module", "package", "session"])
@pytest.mark.parametrize("mode", ["auto", "strict"])
@pytest.mark.cases(1)
def test_with_pytest_asyncio(
    others: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    replica_set_uri: str,
    mode: str,
    loop_scope: str,
) -> None:
    """In both modes, on loops of every scope: the fixtures are on the loop of their test."""
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    mark = f"@pytest.mark.asyncio(loop_scope={loop_scope!r})"
    if mode == "auto" and loop_scope == "function":
        mark = ""
    indented = TWO_TESTS.format(imports="", mark=mark)
    if loop_scope == "class":
        head, first, second = indented.split(mark)
        tests = (first + mark + second).replace(
            "async def test_charge(", "async def test_charge(_,"
        )
        tests = tests.replace(
            "async def test_another_database(", "async def test_another_database(_,"
        )
        body = "".join(f"    {line}\n" for line in (mark + tests).splitlines())
        indented = f"{head}class TestTheSame:\n{body}"
    others.makepyfile(indented)
    result = others.runpytest_subprocess("-p", "no:cacheprovider", f"--asyncio-mode={mode}")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["replica set: the one of MONGODB_URI"])
    result.stdout.no_fnmatch_line(f"*{replica_set_uri}*")


@pytest.mark.parametrize("others_plugin", [(), ("-p", "no:asyncio")])
@pytest.mark.cases(1)
def test_with_anyio(
    others: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    replica_set_uri: str,
    others_plugin: tuple[str, ...],
) -> None:
    """Tests marked for anyio, beside pytest-asyncio in strict mode and without it."""
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    backend = "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n"
    others.makepyfile(TWO_TESTS.format(imports=backend, mark="@pytest.mark.anyio"))
    others.runpytest_subprocess("-p", "no:cacheprovider", *others_plugin).assert_outcomes(passed=2)


def test_without_a_plugin_for_loops_the_failure_says_what_is_needed(
    others: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, replica_set_uri: str
) -> None:
    """A plain test that asks for the ledger learns what to install."""
    monkeypatch.setenv("MONGODB_URI", replica_set_uri)
    others.makepyfile("def test_it(credit_ledger): pass")
    result = others.runpytest_subprocess("-p", "no:asyncio")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*credit_client needs an event loop: install pytest-asyncio, or mark the test for anyio*"]
    )


def test_a_suite_that_does_not_use_it_pays_nothing(
    others: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing heavy is imported and no server is looked for, but the plugin is there."""
    monkeypatch.setenv("CREDIT_MONGO_TEST_IMAGE", "no-such-image")
    others.makepyfile(
        """
        import json, sys
        from pathlib import Path

        def test_it():
            Path("modules").write_text(json.dumps(sorted(sys.modules)))
        """
    )
    result = others.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("replica set:*")
    modules = {name.partition(".")[0] for name in json.loads((others.path / "modules").read_text())}
    assert "pytest_credit_mongo" in modules
    assert not modules & {"pymongo", "bson", "beanie", "pydantic", "credit_mongo", "docker"}


def test_a_local_mongod_is_started_and_ends(
    others: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a URI and without an engine; the parameters are the suite's."""
    for name in ("MONGODB_URI", "CREDIT_MONGO_TEST_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    others.makepyfile(
        """
        from pathlib import Path
        import pytest

        @pytest.fixture(scope="session")
        def credit_mongod_parameters():
            return {"enableTestCommands": "1"}

        @pytest.mark.asyncio
        async def test_it(credit_client, credit_replica_set):
            Path("uri").write_text(credit_replica_set)
            wanted = {"getParameter": 1, "enableTestCommands": 1}
            assert (await credit_client.admin.command(wanted))["ok"] == 1
        """
    )
    result = others.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["replica set: a local mongod, *"])
    port = (others.path / "uri").read_text().partition("/?")[0].rpartition(":")[2]
    listens = (
        "import socket, sys; sys.exit(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))"
    )
    assert others.run(sys.executable, "-c", listens, port).ret != 0


@pytest.mark.parametrize("image", ["", "no-such-image"])
def test_without_any_replica_set_the_tests_fail(
    others: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, image: str
) -> None:
    """They fail, not skip, and say what can be done; an image asked for by name is not replaced."""
    monkeypatch.delenv("MONGODB_URI", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "unix:///no/such/socket")
    monkeypatch.setenv("CREDIT_MONGO_TEST_IMAGE", image)
    if not image:
        monkeypatch.setenv("CREDIT_MONGO_MONGOD", "/no/such/mongod")
    others.makepyfile("def test_it(credit_replica_set): pass")
    result = others.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["replica set: none; *start a Docker engine*"])
    if not image:
        result.stdout.fnmatch_lines(["replica set: none; set MONGODB_URI; *"])
