"""The command ``credit-mongo studio``: what it prints, serves and refuses."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from httpx import AsyncClient

from credit_mongo import CreditLedger
from tests.integration.commands import PROGRAM, ROOT, environment, run, where
from tests.integration.promises import Database

PASSWORD = "correct horse battery"  # noqa: S105


@asynccontextmanager
async def serving(
    *arguments: str, **more: str
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """The command as a process, on a free port; its address, and the process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *PROGRAM,
        *("studio", "--port", "0", "--json", *arguments),
        cwd=ROOT,
        env=environment(**more),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        printed = await asyncio.wait_for(process.stdout.readuntil(b"}\n"), 60)
        yield json.loads(printed)["url"], process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_serves_until_it_is_told_to_end(
    ledger: CreditLedger, database: Database, replica_set_uri: str, number: signal.Signals
) -> None:
    """By the printed link, and no other way; the end is no failure."""
    await ledger.create_user("ann", credits=50)
    async with (
        serving(*where(replica_set_uri, database), "--operator", "Béa") as (url, process),
        AsyncClient(follow_redirects=True) as browser,
    ):
        site = re.sub(r"enter.*", "", url)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", site)
        assert (await browser.get(site)).status_code == 401
        page = (await browser.get(url)).text
        assert "Béa" in page
        assert database.name in page
        assert "ann" in (await browser.get(f"{site}users")).text
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, errors.decode()) == (0, "")


async def test_another_host_needs_a_password(
    ledger: CreditLedger, database: Database, replica_set_uri: str
) -> None:
    """From the environment, long enough; then the page asks for it."""
    everywhere = (*where(replica_set_uri, database), "--host", "0.0.0.0")  # noqa: S104
    code, _, errors = await run("studio", "--port", "0", *everywhere)
    assert code == 2
    assert "CREDIT_MONGO_STUDIO_PASSWORD" in errors
    short = {"CREDIT_MONGO_STUDIO_PASSWORD": "short"}
    code, _, errors = await run("studio", "--port", "0", *everywhere, **short)
    assert code == 2
    assert "at least 12 characters" in errors
    assert '"short"' not in errors
    async with (
        serving(*everywhere, CREDIT_MONGO_STUDIO_PASSWORD=PASSWORD) as (url, _),
        AsyncClient() as browser,
    ):
        site = url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
        found = await browser.get(site)
        assert found.status_code == 401
        assert 'type="password"' in found.text
        elsewhere = await browser.get(site, headers={"host": "evil.example"})
        assert elsewhere.status_code == 421


async def test_what_cannot_be_served_is_said_in_one_line(
    database: Database, replica_set_uri: str
) -> None:
    """A port that is taken, or none; a database without a ledger."""
    here = where(replica_set_uri, database)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, output, errors = await run("studio", "--port", port, *here)
        assert (code, output, errors.count("\n")) == (2, "", 1)
        assert f"port {port}" in errors
    for option, word in (("--port", "70000"), ("--port", "x"), ("--host", "no.such.invalid")):
        password = {"CREDIT_MONGO_STUDIO_PASSWORD": PASSWORD}
        code, output, errors = await run("studio", option, word, *here, **password)
        assert (code, output) == (2, ""), word
        assert word in errors or "port" in errors
    code, output, errors = await run("studio", "--port", "0", *here)
    assert (code, output) == (2, "")
    assert "has no ledger" in errors


def test_the_browser_opens_a_file_that_nobody_else_can_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Other users of a machine see the command lines of its programs, and so of a browser."""
    from credit_mongo.cli.commands import studio

    opened = []

    def look(address: str) -> bool:
        page = Path(address.removeprefix("file://"))
        opened.append((page.read_text(encoding="utf-8"), stat.S_IMODE(page.stat().st_mode)))
        return True

    monkeypatch.setattr("webbrowser.open", look)
    with studio._opened('http://127.0.0.1:1/enter?token=a&b="c'):
        [(page, mode)] = opened
        assert "url=http://127.0.0.1:1/enter?token=a&amp;b=&quot;c" in page
        assert mode == 0o600
