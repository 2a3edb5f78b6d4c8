"""The one place that decides what reaches a page: hosts, headers, sessions and forms.

- The Host header must name this machine, unless the application that mounts Studio checks it. A
  name of somebody else's that was pointed at this machine (DNS rebinding) is refused.
- Without an operator there is nothing but the static files and the way in.
- What changes something is a form of Studio's own: it comes from the same origin, and has the token
  of its session.
- Every answer has the headers below. Pages load nothing from elsewhere, and are never cached.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from credit_mongo.errors import InvalidRequestError
from credit_mongo.studio.failures import Failure, Refused, failure_of
from credit_mongo.studio.gates import Gate

__all__ = [
    "FORM_TOKEN",
    "Guard",
    "HostNames",
    "Session",
    "Sessions",
    "Visitor",
    "base_of",
    "sign_in",
    "sign_out",
]

FORM_TOKEN: Final = "form_token"  # noqa: S105 - a field's name
"""The field of every form that has the token of its session."""

_VISITOR: Final = "credit_mongo.studio.visitor"
_SESSION_SECONDS: Final = 12 * 3600
_MOST_ENDED_SESSIONS: Final = 10_000
_LARGEST_FORM_BYTES: Final = 64 * 1024
_MOST_FIELDS: Final = 100
_URL_ENCODED: Final = "application/x-www-form-urlencoded"
_SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
_STATIC: Final = "/static/"
_OPEN_PATHS: Final = frozenset({"/enter", "/sign-in"})

_HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not "no-referrer": browsers would then send forms with the Origin "null".
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Robots-Tag": "noindex, nofollow",
}


@dataclass(frozen=True, slots=True)
class HostNames:
    """The names by which browsers may call this server."""

    names: frozenset[str]
    any_address: bool = False
    """Whether any IP address will do. Only names can be pointed elsewhere."""

    def allow(self, host: str) -> bool:
        """Whether a Host header, with a port or without, is one of these."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or (self.any_address and bool(ip_address(name)))
        except ValueError:
            return False


class Session(NamedTuple):
    """What a browser's cookie says. Without an operator, it only holds forms together."""

    session_id: str
    operator: str
    began_at: datetime
    is_new: bool = False

    @classmethod
    def new(cls, operator: str = "") -> Session:
        """Return a session that no browser has yet."""
        now = datetime.now(timezone.utc)
        return cls(secrets.token_urlsafe(16), operator, now, is_new=True)


class Sessions:
    """Reads and writes the cookie, and the tokens of forms. Both are signed."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._cookies: Any = URLSafeTimedSerializer(
            secret, salt="credit_mongo.studio", signer_kwargs={"digest_method": hashlib.sha256}
        )
        # Cookies don't tell ports apart: two Studios on one machine need two names.
        self.cookie_name: str = f"credit_studio_{self._digest('name')[:8]}"
        self._ended: OrderedDict[str, datetime] = OrderedDict()
        """When the sessions began that were signed out, by id."""
        self._none_before = datetime.min.replace(tzinfo=timezone.utc)

    def read(self, request: HTTPConnection) -> Session | None:
        """The session of a request. None without one, and if it is over or forged."""
        cookie = request.cookies.get(self.cookie_name)
        if cookie is None:
            return None
        try:
            (session_id, operator), began_at = self._cookies.loads(
                cookie, max_age=_SESSION_SECONDS, return_timestamp=True
            )
        except (BadData, TypeError, ValueError):
            return None
        if session_id in self._ended or began_at < self._none_before:
            return None
        return Session(str(session_id), str(operator), began_at)

    def end(self, session: Session) -> None:
        """Take the session's cookie no more, whoever has kept it."""
        self._ended[session.session_id] = session.began_at
        while len(self._ended) > _MOST_ENDED_SESSIONS:
            # A cookie that is forgotten here must not count again. So everybody who came in before
            # it comes in anew. One that is twelve hours old counts no more in any case.
            _, began_at = self._ended.popitem(last=False)
            self._none_before = max(self._none_before, began_at + timedelta(seconds=1))

    def set_cookie(
        self, response: MutableHeaders, request: HTTPConnection, session: Session
    ) -> None:
        """Let the browser keep a session until it closes, for at most twelve hours."""
        value = self._cookies.dumps([session.session_id, session.operator])
        secure = "; Secure" if request.url.scheme == "https" else ""
        response.append(
            "Set-Cookie",
            f"{self.cookie_name}={value}; Path={base_of(request.scope) or '/'}; HttpOnly; "
            f"SameSite=Strict{secure}",
        )

    def form_token(self, session: Session, operator: str) -> str:
        """The token of this session's forms, for this operator alone."""
        return self._digest(f"form\0{session.session_id}\0{operator}")

    def seal(self, session: Session, operator: str, facts: object) -> str:
        """Return facts for a form as text that only this session's operator can send back."""
        return str(self._seals(session, operator).dumps(facts))

    def unseal(self, session: Session, operator: str, text: str, seconds: int) -> Any:
        """Return the facts of a seal that is at most so old. Raises Refused."""
        try:
            return self._seals(session, operator).loads(text, max_age=seconds)
        except SignatureExpired:
            raise Refused(_OLD_FORM) from None
        except (BadData, ValueError):
            raise Refused(_CHANGED_FORM) from None

    def _seals(self, session: Session, operator: str) -> URLSafeTimedSerializer:
        return URLSafeTimedSerializer(
            self._digest(f"seal\0{session.session_id}\0{operator}"),
            salt="credit_mongo.studio.seal",
            signer_kwargs={"digest_method": hashlib.sha256},
        )

    def _digest(self, text: str) -> str:
        return hmac.new(self._secret, text.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


@dataclass(slots=True)
class Visitor:
    """Who asks, and the form that was sent."""

    sessions: Sessions
    session: Session
    operator: str
    is_read_only: bool = False
    form: Mapping[str, str] = field(default_factory=dict)

    @property
    def form_token(self) -> str:
        """The token that this visitor's forms have."""
        return self.sessions.form_token(self.session, self.operator)

    def seal(self, facts: object) -> str:
        """Return facts for a form as text that only this visitor can send back."""
        return self.sessions.seal(self.session, self.operator, facts)

    def unseal(self, text: str, seconds: int) -> Any:
        """Return the facts of a seal that is at most so old. Raises Refused."""
        return self.sessions.unseal(self.session, self.operator, text, seconds)

    @classmethod
    def of(cls, request: HTTPConnection) -> Visitor | None:
        """The visitor of a request. None if it was refused before anybody looked."""
        found: Visitor | None = request.scope.get(_VISITOR)
        return found


def sign_in(request: HTTPConnection, operator: str) -> None:
    """Begin a session for the operator, with an id that nobody has seen before."""
    visitor = Visitor.of(request)
    assert visitor is not None  # noqa: S101 - pages are behind the guard
    visitor.session = Session.new(operator)


def sign_out(request: HTTPConnection) -> None:
    """End the session: its cookie counts no more. The browser gets one without an operator."""
    visitor = Visitor.of(request)
    assert visitor is not None  # noqa: S101 - pages are behind the guard
    visitor.sessions.end(visitor.session)
    visitor.session = Session.new()


def base_of(scope: Scope) -> str:
    """The path under which the application is mounted, without a slash at the end."""
    return str(scope.get("root_path", "")).rstrip("/")


class Guard:
    """Middleware around all of Studio."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        gate: Gate,
        sessions: Sessions,
        hosts: HostNames | None,
        explain: Callable[[Request, Failure], Response],
    ) -> None:
        self._app = app
        self._gate = gate
        self._sessions = sessions
        self._hosts = hosts
        self._explain = explain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the application answer."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        answer = self._app
        try:
            await self._admit(request)
        except ClientDisconnect:
            return
        except Exception as error:
            answer = self._explain(request, failure_of(error))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), request)
            await send(message)

        await answer(scope, receive, send_with_headers)

    async def _admit(self, request: Request) -> None:
        if self._hosts is not None and not self._hosts.allow(request.headers.get("host", "")):
            raise Refused(_WRONG_HOST)
        base = base_of(request.scope)
        path = request.scope["path"].removeprefix(base)
        if path.startswith(_STATIC) and request.method in _SAFE_METHODS:
            return
        session = self._sessions.read(request) or Session.new()
        operator, is_read_only = session.operator if self._gate.has_sessions else "", False
        if not operator and (found := await self._gate.operator_of(request)) is not None:
            operator, is_read_only = found.name, found.read_only
        visitor = Visitor(self._sessions, session, operator, is_read_only)
        request.scope[_VISITOR] = visitor
        if not operator and path not in _OPEN_PATHS:
            raise Refused(self._turned_away(request))
        if request.method not in _SAFE_METHODS:
            _check_origin(request)
            visitor.form = await _read_form(request)
            token = visitor.form.get(FORM_TOKEN, "").encode()
            if not hmac.compare_digest(token, visitor.form_token.encode()):
                raise Refused(_FOREIGN_FORM)

    def _turned_away(self, request: Request) -> Failure:
        failure = self._gate.turned_away()
        if request.method in _SAFE_METHODS:
            return failure
        return replace(failure, text=f"{failure.text} The form that you sent has changed nothing.")

    def _add_headers(self, headers: MutableHeaders, request: Request) -> None:
        for name, value in _HEADERS.items():
            headers[name] = value
        headers.setdefault("Cache-Control", "no-store")
        visitor = Visitor.of(request)
        if visitor is not None and visitor.session.is_new:
            self._sessions.set_cookie(headers, request, visitor.session)


def _check_origin(request: Request) -> None:
    """Raise Refused for a request that another site's page has made."""
    fetched_from = request.headers.get("sec-fetch-site")
    if fetched_from is not None:
        if fetched_from != "same-origin":
            raise Refused(_FOREIGN_FORM)
        return
    # A browser that says less sends at least the origin. The scheme is left out, since a proxy in
    # front may speak https to the browser and http to us.
    origin = urlsplit(request.headers.get("origin", "")).netloc
    if not origin or origin != request.headers.get("host"):
        raise Refused(_FOREIGN_FORM)


async def _read_form(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _URL_ENCODED:
        raise Refused(Failure(415, "Not a form", "Studio takes only its own forms."))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_FORM_BYTES:
            raise Refused(Failure(413, "The form is too large", "A form may have at most 64 KiB."))
    try:
        pairs = parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        raise InvalidRequestError("form", "is not what a browser sends") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InvalidRequestError("form", "has a field twice")
    return fields


_WRONG_HOST: Final = Failure(
    421,
    "This server has another name",
    "The address in your browser is not one that Studio answers to.",
    "Open the address that the command printed.",
)
_FOREIGN_FORM: Final = Failure(
    403,
    "This form is not valid any more",
    "It was opened before you signed in, or another site has sent it. Nothing was changed.",
    "Go back, reload the page, and send it again.",
)
_CHANGED_FORM: Final = Failure(
    400,
    "This form can't be used",
    "It is not as Studio made it for you: it was changed, it is from another session, or Studio "
    "was started anew since. Nothing was changed.",
    "Open the form again.",
)
_OLD_FORM: Final = Failure(
    400,
    "This form is too old",
    "A form can be sent for an hour. Nothing was changed by sending it now.",
    "Open the form again.",
)
