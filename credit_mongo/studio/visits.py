"""What a page gets: the ledger, one request, and a way to answer it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias
from urllib.parse import urlencode

from jinja2 import Environment
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from credit_mongo.config import CreditConfig
from credit_mongo.core.values import check_identifier
from credit_mongo.errors import InvalidRequestError
from credit_mongo.maintenance.moments import parse_moment
from credit_mongo.studio.failures import Failure
from credit_mongo.studio.reads import Reads
from credit_mongo.studio.security import FORM_TOKEN, Visitor, base_of

__all__ = ["Page", "Show", "Studio", "Visit"]

_LONGEST_CURSOR: Final = 2000
_LARGEST_NUMBER_DIGITS: Final = 19


@dataclass(frozen=True, slots=True)
class Studio:
    """What all pages share."""

    config: CreditConfig
    reads: Reads
    templates: Environment
    name: str
    """Of the database."""
    offers_changes: bool
    """Whether there are pages that change an account."""
    search_fields: tuple[str, ...]
    """The fields of users' documents by which users can be found, such as an e-mail address."""
    has_sessions: bool
    asks_for_password: bool


class Visit:
    """One request of one operator."""

    def __init__(self, studio: Studio, request: Request, pages: tuple[Page, ...] = ()) -> None:
        self.studio: Studio = studio
        self.request: Request = request
        self.reads: Reads = studio.reads
        self._pages = pages
        self._visitor = Visitor.of(request)

    @property
    def operator(self) -> str:
        """The operator's name. Empty on the way in."""
        return self._visitor.operator if self._visitor else ""

    @property
    def form(self) -> Mapping[str, str]:
        """The fields of the form that was sent."""
        return self._visitor.form if self._visitor else {}

    @property
    def is_read_only(self) -> bool:
        """Whether the operator may only look."""
        return self._visitor is None or self._visitor.is_read_only

    def seal(self, facts: object) -> str:
        """Return facts for a form as text that only this operator's session can send back."""
        assert self._visitor is not None  # noqa: S101 - pages are behind the guard
        return self._visitor.seal(facts)

    def unseal(self, text: str, seconds: int) -> Any:
        """Return the facts of a seal that is at most so old. Raises Refused."""
        assert self._visitor is not None  # noqa: S101 - pages are behind the guard
        return self._visitor.unseal(text, seconds)

    @property
    def is_fragment(self) -> bool:
        """Whether the page's script asks for a part of the page."""
        return self.request.headers.get("hx-request") == "true"

    # Questions in the address

    def asked(self, name: str) -> str | None:
        """A value of the address, stripped. None if it is missing or empty."""
        value = self.request.query_params.get(name, "").strip()
        return value or None

    def asked_id(self, name: str = "id") -> str:
        """An id that the address must have, exactly as it is. Raises InvalidRequestError."""
        return check_identifier(name, self.request.query_params.get(name, ""))

    def cursor(self) -> str | None:
        """The place where a list goes on."""
        value = self.request.query_params.get("cursor") or None
        if value is not None and len(value) > _LONGEST_CURSOR:
            raise InvalidRequestError("cursor", "is too long to be a cursor")
        return value

    def asked_number(self, name: str) -> int | None:
        """A whole number of the address. Raises InvalidRequestError."""
        text = self.asked(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= _LARGEST_NUMBER_DIGITS):
            raise InvalidRequestError(name, "must be a whole number")
        return int(text)

    def asked_one_of(self, name: str, allowed: tuple[str, ...]) -> str:
        """One of these values, the first one by default. Raises InvalidRequestError."""
        value = self.asked(name) or allowed[0]
        if value not in allowed:
            raise InvalidRequestError(name, f"must be one of {', '.join(filter(None, allowed))}")
        return value

    def asked_moment(self, name: str) -> datetime | None:
        """A date or moment of the address, in UTC. Raises InvalidRequestError."""
        text = self.asked(name)
        return None if text is None else parse_moment(name, text)

    # Answers

    def url(self, path: str, **query: object) -> str:
        """The address of a page. Questions that are None or empty are left out."""
        asked = {name: str(value) for name, value in query.items() if value not in (None, "")}
        base = base_of(self.request.scope)
        return f"{base}{path}?{urlencode(asked)}" if asked else f"{base}{path}"

    def is_under(self, path: str) -> bool:
        """Whether a page of the menu is this one."""
        return self._path == path

    def path_to_return_to(self) -> str:
        """This page, for after signing in."""
        query = self.request.url.query
        return f"{self._path}?{query}" if query else self._path

    @property
    def _path(self) -> str:
        path: str = self.request.scope["path"]
        return path.removeprefix(base_of(self.request.scope))

    def here(self, **changed: object) -> str:
        """The address of this page with other questions."""
        return self.url(self._path, **{**self.request.query_params, **changed})

    def render(self, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Answer with a page."""
        text = self.studio.templates.get_template(template).render(
            visit=self,
            studio=self.studio,
            pages=self._pages,
            base=base_of(self.request.scope),
            url=self.url,
            here=self.here,
            operator=self.operator,
            form_token_name=FORM_TOKEN,
            form_token=self._visitor.form_token if self._visitor else "",
            **facts,
        )
        return HTMLResponse(text, status)

    def fail(self, failure: Failure, **facts: Any) -> Response:
        """Answer with what went wrong and what to do."""
        name = "failure_part.html" if self.is_fragment else "failure.html"
        response = self.render(name, status=failure.status, failure=failure, **facts)
        response.headers.update(failure.headers)
        return response

    def redirect(self, path: str, **query: object) -> Response:
        """Answer with another page of Studio's, after a form."""
        return RedirectResponse(self.url(path, **query), status_code=303)


Show: TypeAlias = Callable[[Visit], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its path, and how it answers."""

    path: str
    show: Show
    title: str = ""
    """The page's name in the menu. Pages without one are reached by links."""
    send: Show | None = None
    """How it answers to a form."""
