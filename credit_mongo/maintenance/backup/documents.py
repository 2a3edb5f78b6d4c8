"""Documents as bytes: their elements, the changes of a change stream, and the order of ids.

A backup copies documents that may hold anything: types that Python lacks, text that is not UTF-8,
names with dots. So nothing is decoded that need not be. Elements are copied byte by byte, and what
is restored is what was stored.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

__all__ = ["Change", "apply_change", "elements_of", "order_of_id", "to_document"]

Value: TypeAlias = bytes
"""A type's byte, and the value's bytes after it."""

_LENGTH: Final = struct.Struct("<i")
_EMPTY: Final = b"\x05\x00\x00\x00\x00"
_STRING: Final = 0x02
_OBJECT: Final = 0x03
_ARRAY: Final = 0x04
_NULL: Final = b"\x0a"
# By type, how many bytes a value has.
_FIXED: Final = {
    0x01: 8,  # double
    0x06: 0,  # undefined
    0x07: 12,  # ObjectId
    0x08: 1,  # bool
    0x09: 8,  # date
    0x0A: 0,  # null
    0x10: 4,  # int
    0x11: 8,  # timestamp
    0x12: 8,  # long
    0x13: 16,  # decimal
    0x7F: 0,  # MaxKey
    0xFF: 0,  # MinKey
}
# How many bytes come in addition to those that the value's own length counts.
_MEASURED: Final = {
    0x02: 4,  # string
    0x03: 0,  # document
    0x04: 0,  # array
    0x05: 5,  # binary
    0x0C: 16,  # DBPointer
    0x0D: 4,  # code
    0x0E: 4,  # symbol
    0x0F: 0,  # code with scope
}
_REGEX: Final = 0x0B


def elements_of(document: bytes | memoryview) -> Iterator[tuple[bytes, Value]]:
    """Yield a document's names and values. Raises ValueError if it isn't one."""
    raw = bytes(document)
    position, end = 4, len(raw) - 1
    if end < position or _LENGTH.unpack_from(raw)[0] != len(raw):
        raise ValueError("is not a BSON document")
    while position < end:
        kind = raw[position]
        stop = raw.index(0, position + 1)
        begin = stop + 1
        if (size := _FIXED.get(kind)) is None:
            if kind == _REGEX:
                size = raw.index(0, raw.index(0, begin) + 1) + 1 - begin
            elif kind in _MEASURED:
                size = _MEASURED[kind] + _LENGTH.unpack_from(raw, begin)[0]
            else:
                raise ValueError(f"has a value of the unknown type {kind}")
        yield raw[position + 1 : stop], raw[position : position + 1] + raw[begin : begin + size]
        position = begin + size


def to_document(elements: Mapping[bytes, Value]) -> bytes:
    """Make a document of names and values."""
    body = b"".join([value[:1] + name + b"\x00" + value[1:] for name, value in elements.items()])
    return _LENGTH.pack(len(body) + 5) + body + b"\x00"


class Change:
    """A change as a backup keeps it: a change event, without what only the stream needs."""

    __slots__ = ("collection", "elements", "operation")

    _KEPT: Final = frozenset(
        {b"operationType", b"clusterTime", b"ns", b"documentKey", b"fullDocument"}
        | {b"updateDescription"}
    )

    def __init__(self, event: bytes | memoryview) -> None:
        """Take a change event, or what `to_bytes` made of one."""
        kept = self._KEPT
        self.elements: dict[bytes, Value] = {
            name: value for name, value in elements_of(event) if name in kept
        }
        self.operation: str = _text(self.elements[b"operationType"])
        where = dict(elements_of(self.elements.get(b"ns", b"\x03" + _EMPTY)[1:]))
        self.collection: str = _text(where[b"coll"]) if b"coll" in where else ""

    def to_bytes(self) -> bytes:
        """Return the change as a BSON document."""
        return to_document(self.elements)

    @property
    def time(self) -> tuple[int, int]:
        """The cluster time of the commit: seconds, and the number within the second."""
        number, seconds = struct.unpack_from("<II", self.elements[b"clusterTime"], 1)
        return seconds, number

    @property
    def id(self) -> Value:
        """The ``_id`` of the document."""
        return dict(elements_of(self.elements[b"documentKey"][1:]))[b"_id"]

    def field(self, name: bytes) -> Value | None:
        """A field of the inserted document, or the new value of an updated one, by its path."""
        if b"fullDocument" in self.elements:
            return dict(elements_of(self.elements[b"fullDocument"][1:])).get(name)
        if b"updateDescription" in self.elements:
            updated = _description(self.elements[b"updateDescription"])[b"updatedFields"]
            return dict(elements_of(updated[1:])).get(name)
        return None


def apply_change(document: bytes | None, change: Change) -> bytes | None:
    """Return a document as it is after a change. None: there is none.

    Raises ValueError if the change doesn't fit the document, because another one is missing.
    """
    if change.operation in ("insert", "replace"):
        return change.elements[b"fullDocument"][1:]
    if change.operation == "delete":
        return None
    if document is None:
        raise ValueError("an update finds no document")
    parts = _description(change.elements[b"updateDescription"])
    root = _Node(document, is_array=False)
    exact = {
        path: [value for _, value in elements_of(names[1:])]
        for path, names in elements_of(parts.get(b"disambiguatedPaths", b"\x03" + _EMPTY)[1:])
    }
    for _, cut in elements_of(parts.get(b"truncatedArrays", b"\x04" + _EMPTY)[1:]):
        found = dict(elements_of(cut[1:]))
        path = _string(found[b"field"])
        root.truncate(_components(path, exact), _LENGTH.unpack_from(found[b"newSize"], 1)[0])
    for _, removed in elements_of(parts.get(b"removedFields", b"\x04" + _EMPTY)[1:]):
        root.remove(_components(_string(removed), exact))
    for path, value in elements_of(parts.get(b"updatedFields", b"\x03" + _EMPTY)[1:]):
        root.set(_components(path, exact), value)
    return root.to_bytes()


def _description(value: Value) -> dict[bytes, Value]:
    return dict(elements_of(value[1:]))


def _components(path: bytes, exact: Mapping[bytes, Sequence[Value]]) -> list[bytes]:
    """The names that a path leads through. Servers from 6.1 on say which if it is ambiguous."""
    told = exact.get(path)
    if told is None:
        return path.split(b".")
    return [
        _string(each) if each[0] == _STRING else b"%d" % _LENGTH.unpack_from(each, 1)[0]
        for each in told
    ]


class _Node:
    """A document or an array of one, taken apart as far as a change reaches."""

    def __init__(self, raw: bytes, *, is_array: bool) -> None:
        self._is_array = is_array
        self._fields: dict[bytes, Value | _Node] = dict(elements_of(raw))

    def to_bytes(self) -> bytes:
        return to_document(
            {
                name: bytes([_ARRAY if value._is_array else _OBJECT]) + value.to_bytes()
                if isinstance(value, _Node)
                else value
                for name, value in self._fields.items()
            }
        )

    def set(self, path: Sequence[bytes], value: Value) -> None:
        name, rest = self._step(path)
        if rest:
            self._child(name).set(rest, value)
            return
        if self._is_array:
            for index in range(len(self._fields), int(name)):
                self._fields[b"%d" % index] = _NULL
        self._fields[name] = value

    def remove(self, path: Sequence[bytes]) -> None:
        name, rest = self._step(path)
        if rest:
            self._child(name).remove(rest)
        else:
            self._fields.pop(name, None)

    def truncate(self, path: Sequence[bytes], size: int) -> None:
        name, rest = self._step(path)
        child = self._child(name)
        if rest:
            child.truncate(rest, size)
            return
        for index in range(size, len(child._fields)):
            child._fields.pop(b"%d" % index)

    def _step(self, path: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
        """Return the next name, and what is left. A name that is there may have dots in it."""
        if path[0] not in self._fields and not self._is_array:
            for end in range(2, len(path) + 1):
                name = b".".join(path[:end])
                if name in self._fields:
                    return name, path[end:]
        return path[0], path[1:]

    def _child(self, name: bytes) -> _Node:
        value = self._fields.get(name)
        if isinstance(value, _Node):
            return value
        if value is None or value[0] not in (_OBJECT, _ARRAY):
            raise ValueError("an update leads into a field that is not there")
        child = self._fields[name] = _Node(value[1:], is_array=value[0] == _ARRAY)
        return child


def _string(value: Value) -> bytes:
    return value[5:-1]


def _text(value: Value) -> str:
    return _string(value).decode()


_DOUBLE: Final = struct.Struct("<d")
_LONG: Final = struct.Struct("<q")


def order_of_id(value: Value) -> tuple[Any, ...]:  # noqa: PLR0911 - a table
    """Return a key that sorts ids as the server does, for the types that ids commonly have.

    Raises ValueError for others.
    """
    kind, raw = value[0], value[1:]
    match kind:
        case 0x01:
            return 1, _DOUBLE.unpack(raw)[0]
        case 0x10:
            return 1, _LENGTH.unpack(raw)[0]
        case 0x12:
            return 1, _LONG.unpack(raw)[0]
        case 0x02 | 0x0E:
            return 2, raw[4:-1]
        case 0x05:
            return 5, _LENGTH.unpack_from(raw)[0], raw[4], raw[5:]
        case 0x07:
            return 6, raw
        case 0x08:
            return 7, raw
        case 0x09:
            return 8, _LONG.unpack(raw)[0]
        case _:
            raise ValueError(f"has an _id of the type {kind}")
