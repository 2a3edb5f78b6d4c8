"""A browser, and a Studio that it has been let into."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.studio_command import fill, running
from tests.browser.watched import SCREENSHOTS, Site, Watched, come_in
from tests.integration.promises import Client


@pytest_asyncio.fixture(scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """Debian's Chromium. Without it, the tests fail: ``.ci/browser`` installs it."""
    path = shutil.which("chromium")
    assert path is not None, "apt-get install chromium"
    async with async_playwright() as playwright:
        # Of root's, Chromium's sandbox wants more than a container allows.
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="session")
async def site(
    chromium: Browser,
    client: Client,
    replica_set_uri: str,
    tmp_path_factory: Any,
) -> AsyncIterator[Site]:
    """A running Studio, its data, and a browser's cookie for it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    database = client[f"test_{uuid4().hex[:12]}"]
    filled = await fill(database)
    directory: Path = tmp_path_factory.mktemp("studio")
    async with running(replica_set_uri, database.name, directory) as link:
        state = await come_in(chromium, link)
        yield Site(chromium, link, state, database, filled)
    await client.drop_database(database.name)


@pytest_asyncio.fixture
async def look(site: Site) -> AsyncIterator[Any]:
    """Open a watched page: ``look(width=360, dark=True)``."""
    opened: list[Watched] = []

    async def open_page(*, width: int = 1280, dark: bool = False, **options: Any) -> Watched:
        watched = await Watched.opened(site, width=width, dark=dark, **options)
        opened.append(watched)
        return watched

    yield open_page
    for watched in opened:
        await watched.close()
