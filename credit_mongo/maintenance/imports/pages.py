"""Pages of users, each with all rows of its users, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from credit_mongo.maintenance.imports.history import Trouble
from credit_mongo.maintenance.imports.source import (
    Source,
    SourceAudit,
    SourceTransaction,
    SourceUser,
)

__all__ = ["Page", "PageReader"]

_FIRST_PAGE: Final = 50
_LARGEST_PAGE: Final = 1000
# Rows of each of the two kinds.
_ROWS_WANTED: Final = 3000
_MOST_ROWS: Final = 6000


class Page:
    """Users and their rows. Without a ``repr``, which asyncio could log."""

    __slots__ = ("_audits", "_others", "_rows", "is_long", "refused", "size", "users")

    def __init__(
        self,
        users: Sequence[SourceUser],
        rows: Sequence[SourceTransaction],
        audits: Sequence[SourceAudit],
        *,
        is_long: bool = False,
    ) -> None:
        self.is_long: bool = is_long
        """Whether this is one user with more rows than fit in a page. They must be read apart."""
        self.users: Sequence[SourceUser] = users
        self.size: int = len(rows)
        self.refused: list[Trouble] = []
        """Users whose ids the ledger can't have."""
        self._rows: dict[Any, list[SourceTransaction]] = defaultdict(list)
        self._audits: dict[Any, list[SourceAudit]] = defaultdict(list)
        there = {user.id for user in users}
        # A database that ignores case also finds rows that write the id in another case.
        self._others = {str(user.id).casefold(): user.id for user in users}
        for row in rows:
            self._rows[self._owner(row.user_id, there)].append(row)
        for audit in audits:
            self._audits[self._owner(audit.user_id, there)].append(audit)

    def _owner(self, user_id: Any, there: set[Any]) -> Any:
        return user_id if user_id in there else self._others.get(str(user_id).casefold())

    def rows_of(self, user_id: Any) -> tuple[list[SourceTransaction], list[SourceAudit]]:
        """Return a user's rows."""
        return self._rows.get(user_id, []), self._audits.get(user_id, [])


class PageReader:
    """Reads pages in threads, one after the other."""

    def __init__(self, source: Source, *, has_audits: bool) -> None:
        self._source = source
        self.has_audits: bool = has_audits
        self._users_wanted = _FIRST_PAGE

    async def all_from(self, place: Any) -> AsyncIterator[Page]:
        """Yield all users after a place, in the order of their ids."""
        while True:
            pages = await asyncio.to_thread(self._read, place)
            if not pages:
                return
            for page in pages:
                yield page
            place = pages[-1].users[-1].id

    async def only(self, user_ids: Sequence[Any]) -> AsyncIterator[Page]:
        """Yield these users."""
        begin = 0
        while begin < len(user_ids):
            some = user_ids[begin : begin + self._users_wanted]
            begin += len(some)
            for page in await asyncio.to_thread(self._read_these, some):
                yield page

    def _read(self, place: Any) -> list[Page]:
        self._source.begin()
        return self._with_rows(self._source.users(place, self._users_wanted))

    def _read_these(self, user_ids: Sequence[Any]) -> list[Page]:
        self._source.begin()
        return self._with_rows(self._source.users_by_ids(user_ids))

    def _with_rows(self, users: Sequence[SourceUser]) -> list[Page]:
        if not users:
            return []
        ids = [user.id for user in users]
        most = _MOST_ROWS
        rows = self._source.transactions(ids, most + 1)
        audits = self._source.audit_logs(ids, most + 1) if self.has_audits else []
        if max(len(rows), len(audits)) > most:
            if len(users) == 1:
                return [Page(users, (), (), is_long=True)]
            self._users_wanted = max(1, self._users_wanted // 2)
            half = len(users) // 2
            del rows, audits
            return [*self._with_rows(users[:half]), *self._with_rows(users[half:])]
        self._adapt(len(users), max(len(rows), len(audits), 1))
        return [Page(users, rows, audits)]

    def _adapt(self, users: int, rows: int) -> None:
        wanted = users * _ROWS_WANTED // rows
        # A few users with many rows say little about the next ones.
        wanted = min(wanted, 2 * self._users_wanted, _LARGEST_PAGE)
        self._users_wanted = max(1, wanted)
