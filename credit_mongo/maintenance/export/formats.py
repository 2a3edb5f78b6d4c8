"""The formats of an export: rows of the ledger as CSV, JSON lines or Parquet.

All formats have the columns of ``COLUMNS``, which match ``Transaction``. Moments are in UTC, and
amounts are whole numbers of smallest units. Metadata is JSON: text in a cell of CSV and Parquet, an
object in JSON lines. Values that JSON can't express become MongoDB's relaxed Extended JSON.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal, Protocol, TypeAlias

from bson import Int64, ObjectId, json_util
from bson.datetime_ms import DatetimeMS

from credit_mongo.core.pricing import in_credits
from credit_mongo.errors import InvalidRequestError
from credit_mongo.extras import missing
from credit_mongo.maintenance.columns import COLUMNS, MOMENTS, NUMBERS, PARTS
from credit_mongo.storage.rows import Raw

try:
    import orjson
except ModuleNotFoundError as _error:
    raise missing(_error, "cli") from None

__all__ = ["COLUMNS", "FORMATS", "Encoder", "Format", "Write", "encoder_of"]

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]
FORMATS: Final[tuple[Format, ...]] = ("csv", "jsonl", "parquet")
Write: TypeAlias = Callable[[bytes], object]

_AMOUNTS: Final = NUMBERS - {"seq"}
_IN_CREDITS: Final = "_credits"
_TEXTS: Final = frozenset(COLUMNS) - NUMBERS - PARTS - MOMENTS
_WHOLE: Final = frozenset({int, Int64})
# Columns in which few different values repeat.
_FEW: Final = frozenset({"user_id", "operation", "action"})
# Characters that start a formula in a spreadsheet, and their wide forms: at the start of a cell,
# and where a new cell starts if the file is opened with a separator other than a comma.
_FORMULA_BEGINS: Final = re.compile("(?:^|(?<=[;\t\r\n]))(?=[=+\\-@\t\r\n＝＋－＠])")  # noqa: RUF001
_FORMULA_IN_JSON: Final = re.compile("(?<=;)[=+\\-@＝＋－＠]")  # noqa: RUF001
# Characters for which a CSV cell needs quotes.
_SPECIAL: Final = re.compile('[,"\r\n]')
_ROW_GROUP: Final = 20_000
_EXTENDED: Final = json_util.RELAXED_JSON_OPTIONS
_extended: Final = partial(json_util.default, json_options=_EXTENDED)
# This encoder raises an error for NaN and infinity. orjson writes null for them.
_strict: Final = json.JSONEncoder(allow_nan=False, default=_extended).encode
# Dates become Extended JSON too.
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATETIME


class Encoder(Protocol):
    """Writes rows in one format."""

    def add(self, rows: Sequence[Raw]) -> None:
        """Write rows, now or later."""

    def end(self) -> None:
        """Write the remaining rows."""


def encoder_of(
    kind: Format, write: Write, *, guard_cells: bool, byte_order_mark: bool, decimal_places: int
) -> Encoder:
    """Return an encoder for the format. If ``decimal_places`` > 0, add columns in credits.

    Raises InvalidRequestError if the format is unknown or pyarrow is missing, or if a byte order
    mark is wanted for anything but CSV.
    """
    if byte_order_mark and kind != "csv":
        raise InvalidRequestError("byte_order_mark", "is for CSV alone")
    if kind == "csv":
        return _Csv(write, decimal_places, guard_cells=guard_cells, byte_order_mark=byte_order_mark)
    if kind == "jsonl":
        return _JsonLines(write, decimal_places)
    if kind == "parquet":
        return _Parquet(write, decimal_places)
    raise InvalidRequestError("format", f"must be one of {', '.join(FORMATS)}")


class _Lines:
    """Writes a line for each row. Formats column by column, then joins the cells of each row."""

    def __init__(
        self, write: Write, decimal_places: int, line: str, *, quote: str, none: str
    ) -> None:
        self._columns = _columns(decimal_places)
        self._decimal_places = decimal_places
        self._write = write
        self._line = line
        self._quote = quote
        self._none = none

    def add(self, rows: Sequence[Raw]) -> None:
        columns = (
            self._cells_in_credits(name, rows)
            if name.endswith(_IN_CREDITS)
            else self._cells(name, rows)
            for name in self._columns
        )
        cells = zip(*columns, strict=True)
        # map() keeps this loop in C, for some hundred thousand rows a second.
        lines = "".join(map(self._line.__mod__, cells))
        self._write(lines.encode("utf-8", "backslashreplace"))

    def end(self) -> None:
        pass

    def _cells_in_credits(self, name: str, rows: Sequence[Raw]) -> Iterable[object]:
        quote, none = self._quote, self._none
        return [
            none if each is None else f"{quote}{each}{quote}"
            for each in _credits(_values(name, rows), self._decimal_places)
        ]

    def _cells(self, name: str, rows: Sequence[Raw]) -> Iterable[object]:
        values, quote, none = _values(name, rows), self._quote, self._none
        # Other software may have stored anything in any field.
        if name in NUMBERS:
            return [each if type(each) in _WHOLE else self._other(each) for each in values]
        if name in MOMENTS:
            return [
                # MongoDB stores milliseconds.
                f"{quote}{each.isoformat('T', 'milliseconds')}Z{quote}"
                if type(each) is datetime
                else self._text(_moment(each))
                for each in values
            ]
        if name == "transaction_id":
            return [
                f"{quote}{each.binary.hex()}{quote}" if type(each) is ObjectId else self._text(each)
                for each in values
            ]
        if name in PARTS:
            return [none if each is None else self._metadata(_json(each)) for each in values]
        if name in _FEW and {str}.issuperset(map(type, values)):
            known = {each: self._text(each) for each in set(values)}
            return map(known.__getitem__, values)
        return [none if each is None else self._text(each) for each in values]

    def _text(self, value: Any) -> str:
        raise NotImplementedError

    def _other(self, value: Any) -> str:
        raise NotImplementedError

    def _metadata(self, data: bytes) -> str:
        raise NotImplementedError


class _Csv(_Lines):
    """RFC 4180, with a header, in UTF-8.

    ``guard_cells``: put an apostrophe before text that a spreadsheet would run as a formula, so
    that it shows the text instead. This applies at the start of a cell and after a ``;``, which
    separates cells in much of Europe. In JSON an escape replaces the character, which keeps the
    value. The guard is needed because ids, actions, keys and metadata come from an application's
    callers.
    """

    def __init__(
        self, write: Write, decimal_places: int, *, guard_cells: bool, byte_order_mark: bool
    ) -> None:
        line = ",".join("%s" for _ in _columns(decimal_places))
        super().__init__(write, decimal_places, f"{line}\r\n", quote="", none="")
        self._guards_cells = guard_cells
        heading = self._line % self._columns
        write(heading.encode("utf-8-sig" if byte_order_mark else "utf-8"))

    def _text(self, value: Any) -> str:
        if value is None:
            return ""
        text = value if type(value) is str else str(value)
        if text.isalnum():
            return text
        return _quoted(_FORMULA_BEGINS.sub("'", text) if self._guards_cells else text)

    _other = _text

    def _metadata(self, data: bytes) -> str:
        text = data.decode()
        return _quoted(_FORMULA_IN_JSON.sub(_escaped, text) if self._guards_cells else text)


class _JsonLines(_Lines):
    """One JSON object per line, in UTF-8."""

    def __init__(self, write: Write, decimal_places: int) -> None:
        fields = ",".join(f'"{name}":%s' for name in _columns(decimal_places))
        super().__init__(write, decimal_places, f"{{{fields}}}\n", quote='"', none="null")

    def _text(self, value: Any) -> str:
        text = _text(value)
        return f'"{text}"' if text is not None and text.isalnum() else _plain_json(text)

    def _other(self, value: Any) -> str:
        return _plain_json(value)

    def _metadata(self, data: bytes) -> str:
        return data.decode()


class _Parquet:
    """Parquet with typed columns: text, int64, decimals, and milliseconds in UTC."""

    def __init__(self, write: Write, decimal_places: int) -> None:
        try:
            import pyarrow as pa  # noqa: PLC0415 - it is an extra
            from pyarrow import parquet  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise InvalidRequestError(
                "format", "parquet needs pyarrow: pip install 'credit-mongo[parquet]'"
            ) from error
        self._pyarrow = pa
        types = {name: pa.int64() for name in NUMBERS}
        types |= {name: pa.timestamp("ms", tz="UTC") for name in MOMENTS}
        self._columns = _columns(decimal_places)
        self._decimal_places = decimal_places
        # 38 digits hold every int64.
        in_credits = pa.decimal128(38, decimal_places)
        types |= {name: in_credits for name in self._columns if name.endswith(_IN_CREDITS)}
        self._schema = pa.schema([(name, types.get(name, pa.string())) for name in self._columns])
        self._writer = parquet.ParquetWriter(_Sink(write), self._schema)
        self._parts: list[Any] = []
        self._count = 0

    def add(self, rows: Sequence[Raw]) -> None:
        columns = [
            self._pyarrow.array(self._column(name, rows), self._schema.field(name).type)
            for name in self._columns
        ]
        self._parts.append(self._pyarrow.record_batch(columns, schema=self._schema))
        self._count += len(rows)
        if self._count >= _ROW_GROUP:
            self._put()

    def end(self) -> None:
        self._put()
        self._writer.close()

    def _put(self) -> None:
        if self._parts:
            self._writer.write_table(self._pyarrow.Table.from_batches(self._parts))
        self._parts, self._count = [], 0

    def _column(self, name: str, rows: Sequence[Raw]) -> list[Any]:
        values = _values(name, rows)
        if name.endswith(_IN_CREDITS):
            amounts = _credits(values, self._decimal_places)
            return [None if each is None else Decimal(each) for each in amounts]
        if name in PARTS:
            return [None if each is None else _json(each) for each in values]
        if name in _TEXTS:
            return list(map(_text, values))
        kind = int if name in NUMBERS else datetime
        return [each if isinstance(each, kind) else None for each in values]


class _Sink(io.RawIOBase):
    """A file object for pyarrow."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._write(bytes(data))
        return len(data)


# Columns


def _values(name: str, rows: Sequence[Raw]) -> list[Any]:
    field = COLUMNS[name.removesuffix(_IN_CREDITS)]
    return [row.get(field) for row in rows]


def _columns(decimal_places: int) -> tuple[str, ...]:
    """Return the column names. A column in credits follows each column in smallest units."""
    names: list[str] = []
    for name in COLUMNS:
        names.append(name)
        if decimal_places and name in _AMOUNTS:
            names.append(f"{name}{_IN_CREDITS}")
    return tuple(names)


def _credits(values: Sequence[Any], decimal_places: int) -> list[str | None]:
    """Convert smallest units to credits, such as 13.50. None if not a whole number."""
    return [
        in_credits(each, decimal_places).replace(",", "") if type(each) in _WHOLE else None
        for each in values
    ]


# Cells


def _text(value: Any) -> str | None:
    if type(value) is ObjectId:
        return value.binary.hex()
    return value if value is None or type(value) is str else str(value)


def _quoted(text: str) -> str:
    if _SPECIAL.search(text) is None:
        return text
    return '"' + text.replace('"', '""') + '"'


def _escaped(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _moment(value: Any) -> str | None:
    # A stored date outside Python's range, in milliseconds since 1970.
    return str(int(value)) if isinstance(value, DatetimeMS) else _text(value)


def _json(value: Any) -> bytes:
    """Encode as JSON, with relaxed Extended JSON for values that JSON can't express."""
    try:
        encoded = orjson.dumps(value, default=_extended, option=_OPTIONS)
        if b"null" in encoded:
            _strict(value)
    except (TypeError, ValueError):
        return json_util.dumps(value, json_options=_EXTENDED).encode()
    return encoded


def _plain_json(value: Any) -> str:
    try:
        return orjson.dumps(value, default=_extended, option=_OPTIONS).decode()
    except TypeError:
        return json_util.dumps(value, json_options=_EXTENDED)
