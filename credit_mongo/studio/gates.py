"""Who may come in: by the link that the command prints, by a password, or as the application says.

A gate answers two questions: who is the operator of this request, and what does somebody see who is
none. The sessions themselves are in ``security.py``.
"""

from __future__ import annotations

import hashlib
import hmac
import inspect
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from starlette.requests import Request

from credit_mongo.core.values import check_flag, check_identifier
from credit_mongo.errors import ConfigurationError, InvalidRequestError
from credit_mongo.studio.failures import Failure, Refused

__all__ = [
    "SHORTEST_PASSWORD",
    "ApplicationGate",
    "Authorize",
    "Gate",
    "LinkGate",
    "Operator",
    "PasswordGate",
    "check_password",
]


@dataclass(frozen=True, slots=True)
class Operator:
    """Who looks at Studio, by the name that the audit log gets: 1 to 255 characters.

    With ``read_only``, everything that changes an account is left out.
    """

    name: str
    read_only: bool = False


_Answer: TypeAlias = str | Operator | None
Authorize: TypeAlias = Callable[[Request], _Answer | Awaitable[_Answer]]
"""An application's function that returns an operator, or None to refuse.

A name alone stands for an operator who may do everything that Studio can.
It may be a coroutine function. It may raise Starlette's (or FastAPI's) HTTPException, say to
redirect to the application's own login.
"""

SHORTEST_PASSWORD: Final = 12
_LINK_SECONDS: Final = 600.0
_MOST_ATTEMPTS: Final = 5
_WINDOW_SECONDS: Final = 60.0
_MOST_ATTEMPTS_OF_ALL: Final = 60
_MOST_ADDRESSES: Final = 1000


class Gate(Protocol):
    """Says who is an operator."""

    @property
    def has_sessions(self) -> bool:
        """Whether somebody stays an operator after coming in, by a cookie."""
        ...

    @property
    def asks_for_password(self) -> bool:
        """Whether there is a form to come in by."""
        ...

    async def operator_of(self, request: Request) -> Operator | None:
        """Who asks, if the request itself says so."""
        ...

    def admit(self, request: Request, proof: str) -> str:
        """Take a token or password for a new session. Returns who it is, or raises Refused."""
        ...

    def turned_away(self) -> Failure:
        """What somebody sees who is no operator."""
        ...


class ApplicationGate:
    """The application knows its operators."""

    has_sessions: bool = False
    asks_for_password: bool = False

    def __init__(self, authorize: Authorize) -> None:
        if not callable(authorize):
            raise ConfigurationError("authorize", "must be a function of the request")
        self._authorize = authorize

    async def operator_of(self, request: Request) -> Operator | None:
        found = self._authorize(request)
        answer = await found if inspect.isawaitable(found) else found
        if answer is None:
            return None
        operator = answer if isinstance(answer, Operator) else Operator(answer)
        try:
            check_identifier("operator", operator.name)
            check_flag("read_only", operator.read_only)
        except InvalidRequestError as error:
            reason = f"must return an operator or None: {error}"
            raise ConfigurationError("authorize", reason) from None
        return operator

    def admit(self, request: Request, proof: str) -> str:  # noqa: ARG002 - as of every gate
        raise Refused(self.turned_away())

    def turned_away(self) -> Failure:
        return Failure(
            403,
            "You are not allowed to see this",
            "The application doesn't know you as an operator of the ledger.",
            "Sign in to the application as somebody who is.",
        )


class LinkGate:
    """The command prints a link with a token, which works once."""

    has_sessions: bool = True
    asks_for_password: bool = False

    def __init__(self, operator: str) -> None:
        self._operator = operator
        self._token: str | None = secrets.token_urlsafe(32)
        self._until = time.monotonic() + _LINK_SECONDS
        self._attempts = _Attempts()

    @property
    def token(self) -> str:
        """The token for the link. Empty if it was used."""
        return self._token or ""

    async def operator_of(self, request: Request) -> Operator | None:  # noqa: ARG002 - as of every gate
        return None

    def admit(self, request: Request, proof: str) -> str:
        self._attempts.check(request)
        expected, is_over = self._token, time.monotonic() > self._until
        if expected is None or is_over or not _is_same(proof, expected):
            self._attempts.note_failure(request)
            raise Refused(_USED_LINK)
        self._token = None
        return self._operator

    def turned_away(self) -> Failure:
        return Failure(
            401,
            "Open the link that the command printed",
            "Studio shows credits only to those who come by that link, and the link works once.",
            "If you came by it from another page, reload this page. Otherwise run credit-mongo "
            "studio again: it prints a new link.",
        )


_USED_LINK: Final = Failure(
    401,
    "This link no longer works",
    "Each link opens Studio once, within ten minutes.",
    "Run credit-mongo studio again: it prints a new link.",
)


class PasswordGate:
    """Everybody who knows the password may come in."""

    has_sessions: bool = True
    asks_for_password: bool = True

    def __init__(self, password: str) -> None:
        self._password = check_password(password)
        self._attempts = _Attempts()

    async def operator_of(self, request: Request) -> Operator | None:  # noqa: ARG002 - as of every gate
        return None

    def admit(self, request: Request, proof: str) -> str:
        self._attempts.check(request)
        if not _is_same(proof, self._password):
            self._attempts.note_failure(request)
            raise Refused(
                Failure(401, "That is not the password", "Nobody was signed in.", "Try again.")
            )
        return ""

    def turned_away(self) -> Failure:
        return Failure(401, "Sign in first", "Studio shows credits only to operators.")


def check_password(password: str) -> str:
    """Raise ConfigurationError for a password that is too short to guard a ledger."""
    if len(password) < SHORTEST_PASSWORD:
        reason = f"must have at least {SHORTEST_PASSWORD} characters, not {len(password)}"
        raise ConfigurationError("password", reason)
    return password


def _is_same(given: str, expected: str) -> bool:
    # Hashed, so that the time tells nothing, not even of the length.
    one, other = (hashlib.sha256(text.encode("utf-8", "replace")) for text in (given, expected))
    return hmac.compare_digest(one.digest(), other.digest())


class _Attempts:
    """Refuses more than a few wrong guesses a minute, of one address and of all together."""

    def __init__(self) -> None:
        self._of_address: OrderedDict[str, list[float]] = OrderedDict()
        self._of_all: list[float] = []

    def check(self, request: Request) -> None:
        """Raise Refused if there were too many."""
        now = time.monotonic()
        own = _recent(self._of_address.get(_address_of(request), []), now)
        self._of_all = _recent(self._of_all, now)
        if len(own) < _MOST_ATTEMPTS and len(self._of_all) < _MOST_ATTEMPTS_OF_ALL:
            return
        oldest = own[0] if len(own) >= _MOST_ATTEMPTS else self._of_all[0]
        wait = int(oldest + _WINDOW_SECONDS - now) + 1
        raise Refused(
            Failure(
                429,
                "Too many attempts",
                f"There were {_MOST_ATTEMPTS} wrong attempts within a minute.",
                f"Wait {wait} seconds, then try again.",
                {"Retry-After": str(wait)},
            )
        )

    def note_failure(self, request: Request) -> None:
        now, address = time.monotonic(), _address_of(request)
        own = _recent(self._of_address.pop(address, []), now)
        self._of_address[address] = [*own, now]
        self._of_all.append(now)
        while len(self._of_address) > _MOST_ADDRESSES:
            self._of_address.popitem(last=False)


def _recent(moments: list[float], now: float) -> list[float]:
    return [moment for moment in moments if now - moment < _WINDOW_SECONDS]


def _address_of(request: Request) -> str:
    return request.client.host if request.client else ""
