"""Templates, and how values look: amounts, moments, ids.

Every text that a template shows is escaped twice: for HTML, and so that it can neither change the
direction of the text beside it nor hide (see `credit_mongo.printing.printable`). Where a form or a
button needs the exact text, the template says ``|exact``.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from credit_mongo.core.operations import GRANTING, REFUNDABLE
from credit_mongo.core.pricing import in_credits
from credit_mongo.core.results import AuditLog
from credit_mongo.printing import moment_to_milliseconds, printable, printable_lines
from credit_mongo.studio.refusals import in_words

__all__ = ["HTMX", "STATIC", "templates_for"]

STATIC: Final = Path(__file__).with_name("static")
HTMX: Final = "vendor/htmx-2.0.11.min.js"
_NOTHING: Final = "–"  # noqa: RUF001 - a dash as wide as a digit
_MINUS: Final = "−"  # noqa: RUF001 - a minus as wide as a plus


class _Exact(str):
    """Text that is shown as it is, escaped for HTML alone."""

    __slots__ = ()


def templates_for(decimal_places: int) -> Environment:
    """The templates, with amounts written in credits of so many decimal places."""
    environment = Environment(
        loader=PackageLoader("credit_mongo.studio"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters.update(
        amount=functools.partial(_amount, places=decimal_places),
        change=functools.partial(_change, places=decimal_places),
        moment=_moment,
        utc=_utc,
        exact=_Exact,
        json=_json,
        count=_count,
        words=_words,
        refusal=functools.partial(_refusal, places=decimal_places),
    )
    environment.globals.update(asset=_asset, htmx=HTMX, refundable=REFUNDABLE, granting=GRANTING)
    return environment


def _shown(value: Any) -> Any:
    """What ``{{ value }}`` writes. None is a mistake in a template, and shows."""
    if isinstance(value, Markup | _Exact):
        return value
    return printable(value) if isinstance(value, str) else value


def _amount(units: int | None, places: int) -> str:
    """An amount in credits: 1,350.00."""
    return _NOTHING if units is None else in_credits(units, places).replace("-", _MINUS)


def _change(units: int, places: int) -> str:
    """An amount with its sign: +13.50."""
    sign = "+" if units > 0 else _MINUS if units < 0 else ""
    return f"{sign}{in_credits(abs(units), places)}"


def _refusal(row: AuditLog, places: int) -> str:
    """Why an attempt was refused."""
    return in_words(row.details.get("code"), row.error_message, places)


def _count(number: int | None) -> str:
    return _NOTHING if number is None else f"{number:,}"


def _words(name: str) -> str:
    """A stored name as words: ``create_user`` is "create user"."""
    return name.replace("_", " ") or _NOTHING


def _moment(moment: datetime | None) -> Markup | str:
    """A moment in UTC. The page's script writes it in the reader's time zone."""
    if moment is None:
        return _NOTHING
    aware = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
    milliseconds = moment_to_milliseconds(aware)
    return Markup('<time datetime="{}">{}</time>').format(milliseconds, _utc(aware))


def _utc(moment: datetime) -> str:
    """A moment in UTC, beside one in the reader's zone where an operator typed it."""
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def _json(value: Any) -> _Exact:
    """A value as indented JSON. BSON types that JSON lacks become text."""
    return _Exact(printable_lines(json.dumps(_plain(value), ensure_ascii=False, indent=2)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime):
        return moment_to_milliseconds(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


@functools.cache
def _asset(name: str) -> Markup:
    """The path of a static file. It changes with the file, so browsers may keep it for good."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return escape(f"/static/{name}?{urlencode({'v': digest})}")
