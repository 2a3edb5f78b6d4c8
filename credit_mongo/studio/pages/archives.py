"""Archives and backups: what was moved or backed up, when and where, and what is left."""

from __future__ import annotations

from typing import Final

from starlette.responses import Response

from credit_mongo.studio.visits import Page, Visit

__all__ = ["PAGES"]


async def _show(visit: Visit) -> Response:
    return visit.render(
        "archives.html",
        title="Archives and backups",
        backups=await visit.reads.backup_runs(),
        runs=await visit.reads.archive_runs(),
        contents=await visit.reads.contents(),
    )


PAGES: Final = (Page("/archives", _show, title="Archives"),)
