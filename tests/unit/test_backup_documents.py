"""Documents as bytes: elements are kept exactly, and changes are applied as the server does."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import UUID

import bson
import pytest
from bson import (
    Binary,
    Code,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    encode,
)
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from credit_mongo.maintenance.backup.documents import (
    Change,
    apply_change,
    elements_of,
    order_of_id,
    to_document,
)

ID = ObjectId()
EVERY_TYPE: dict[str, Any] = {
    "double": 0.5,
    "string": "é\0",
    "document": {"a": {"b": [1, {"c": None}]}},
    "array": [1, "2", [3]],
    "binary": b"\0\1",
    "old binary": Binary(b"\0\1", 2),
    "uuid": Binary.from_uuid(UUID(int=7)),
    "id": ID,
    "bool": True,
    "date": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "null": None,
    "regex": Regex("a.*", "i"),
    "ref": DBRef("c", 1),
    "code": Code("return 1"),
    "code with scope": Code("return x", {"x": 1}),
    "int": 7,
    "timestamp": Timestamp(5, 6),
    "long": Int64(7),
    "decimal": Decimal128("1.50"),
    "smallest": MinKey(),
    "largest": MaxKey(),
    "dots.in.it": 1,
    "$dollar": 1,
    "": "",
}


def change(operation: str, **fields: Any) -> Change:
    """Return a change as a change stream shows it."""
    event = {
        "_id": {"_data": "token"},
        "operationType": operation,
        "clusterTime": Timestamp(100, 3),
        "ns": {"db": "app", "coll": "users"},
        "documentKey": {"_id": ID},
        **fields,
    }
    return Change(encode(event))


def updated(document: dict[str, Any], **description: Any) -> dict[str, Any]:
    """Apply an update to a document."""
    empty: dict[str, Any] = {"updatedFields": {}, "removedFields": [], "truncatedArrays": []}
    update = change("update", updateDescription={**empty, **description})
    found = apply_change(encode(document), update)
    assert found is not None
    return bson.decode(found)


def test_every_type_is_taken_apart_and_put_together_again() -> None:
    """Byte by byte, whatever it is."""
    raw = encode(EVERY_TYPE)
    elements = dict(elements_of(raw))
    assert [name.decode() for name in elements] == list(EVERY_TYPE)
    assert to_document(elements) == raw
    invalid = raw.replace("é".encode(), b"\xff\xff")
    assert to_document(dict(elements_of(invalid))) == invalid


@pytest.mark.parametrize("raw", [b"", b"\5\0\0\0", encode({"a": 1})[:-1], encode({"a": 1}) + b"\0"])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    """And not read beyond its end."""
    with pytest.raises(ValueError, match="is not a BSON document"):
        list(elements_of(raw))


def test_unknown_types_are_refused() -> None:
    """Nobody knows how long such a value is."""
    raw = bytearray(encode({"a": None}))
    raw[4] = 0x66
    with pytest.raises(ValueError, match="unknown type 102"):
        list(elements_of(bytes(raw)))


def test_a_change_keeps_what_a_restore_needs() -> None:
    """Without the stream's token; read back, it is the same."""
    inserted = change("insert", fullDocument=EVERY_TYPE, lsid={"id": 1}, txnNumber=1)
    kept = inserted.to_bytes()
    again = Change(kept)
    assert again.to_bytes() == kept
    assert set(RawBSONDocument(kept)) == {
        *("operationType", "clusterTime", "ns", "documentKey", "fullDocument"),
    }
    assert (again.operation, again.collection, again.time) == ("insert", "users", (100, 3))
    assert again.id == b"\x07" + ID.binary
    assert apply_change(None, again) == encode(EVERY_TYPE)
    assert apply_change(b"anything", change("delete")) is None


def test_updates_change_only_what_they_name() -> None:
    """Paths lead into documents and arrays; the other elements stay as they are."""
    before = {"_id": ID, **EVERY_TYPE, "list": [{"n": 1}, {"n": 2}, 3, 4]}
    after = updated(
        before,
        updatedFields={"int": "new", "document.a.x": 1, "list.1.n": 5, "added": [1]},
        removedFields=["null", "document.a.b"],
        truncatedArrays=[{"field": "list", "newSize": 2}],
    )
    expected = {**before, "int": "new", "document": {"a": {"x": 1}}, "added": [1]}
    expected["list"] = [{"n": 1}, {"n": 5}]
    del expected["null"]
    assert after == bson.decode(encode(expected))
    assert list(after) == list(expected)


def test_arrays_grow_as_far_as_the_path_says() -> None:
    """As on the server, places in between are null."""
    assert updated({"_id": ID, "a": [1]}, updatedFields={"a.3": 4}) == {
        "_id": ID,
        "a": [1, None, None, 4],
    }


def test_names_with_dots_are_found_where_they_are() -> None:
    """A server before 6.1 doesn't say whether a dot is part of a name; one from 6.1 on does."""
    document = {"_id": ID, "a.b": {"c": 1}, "a": {"b": {"c": 1}}, "x.y": 1, "n": {"0": 1}}
    assert updated(document, updatedFields={"x.y": 2})["x.y"] == 2
    assert updated(document, updatedFields={"n.0": 2})["n"] == {"0": 2}
    told = updated(
        document,
        updatedFields={"a.b.c": 2},
        disambiguatedPaths={"a.b.c": ["a.b", "c"]},
    )
    assert (told["a.b"], told["a"]) == ({"c": 2}, {"b": {"c": 1}})
    told = updated(
        {"_id": ID, "l": [{"a.b": 1}]},
        updatedFields={"l.0.a.b": 2},
        disambiguatedPaths={"l.0.a.b": ["l", 0, "a.b"]},
    )
    assert told["l"] == [{"a.b": 2}]


def test_an_update_that_does_not_fit_is_refused() -> None:
    """Another change must be missing: it is not made up."""
    with pytest.raises(ValueError, match="finds no document"):
        apply_change(None, change("update", updateDescription={"updatedFields": {"a": 1}}))
    for document in ({"_id": ID}, {"_id": ID, "a": 5}):
        with pytest.raises(ValueError, match="leads into a field that is not there"):
            updated(document, updatedFields={"a.b": 1})


def test_ids_are_sorted_as_the_server_sorts_them() -> None:
    """By type, and then by value."""
    options: CodecOptions[dict[str, Any]] = CodecOptions()
    ids: list[Any] = [
        *(-5.5, Int64(-2), 0, 0.5, 1, 2**40),
        *("", "A", "a", "aa", "é", "\U0001f600"),
        *(b"", b"\1", Binary(b"\0\0", 0), Binary(b"\0\0", 4)),
        *(ObjectId("0" * 24), ObjectId("f" * 24)),
        *(False, True),
        *(datetime(1960, 1, 1, tzinfo=timezone.utc), datetime(2026, 1, 1, tzinfo=timezone.utc)),
    ]
    keys = [
        order_of_id(dict(elements_of(encode({"_id": each}, codec_options=options)))[b"_id"])
        for each in ids
    ]
    assert keys == sorted(keys)
    with pytest.raises(ValueError, match="has an _id of the type 3"):
        order_of_id(b"\x03" + encode({}))
