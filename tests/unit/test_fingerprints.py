"""Two requests have the same fingerprint if and only if they are the same."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from credit_mongo.integrations.fastapi.fingerprints import BodyDigest, fingerprint

FORM = 'multipart/form-data; boundary="{}"'


def scope_of(*, path: bytes = b"/", query: bytes = b"", **headers: str) -> dict[str, Any]:
    """Return an HTTP request's scope. Underscores in a header's name stand for hyphens."""
    raw = [(name.replace("_", "-").encode(), v.encode("latin-1")) for name, v in headers.items()]
    return {
        "type": "http",
        "method": "POST",
        "path": path.decode(),
        "raw_path": path,
        "query_string": query,
        "headers": raw,
    }


def digest_of(body: bytes, *cuts: int, action: str = "a", **facts: Any) -> str:
    """Return the fingerprint of a request whose body is cut into chunks at these positions."""
    scope = scope_of(**facts)
    digest = BodyDigest(scope)
    edges = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(edges):
        for _ in digest.update(body[start:end]):
            pass
    return fingerprint(scope, action, digest)


def form_of(boundary: str, *parts: tuple[str, str]) -> bytes:
    """Write a form as clients do: each part's headers, then its content."""
    lines = [f"--{boundary}\r\n{head}\r\n\r\n{content}\r\n" for head, content in parts]
    return ("".join(lines) + f"--{boundary}--\r\n").encode()


FIELD = ('Content-Disposition: form-data; name="g"', "evil")
FILE = ('Content-Disposition: form-data; name="f"; filename="x"', "AAA")


@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=5))
def test_chunks_make_no_difference(body: bytes, cuts: list[int]) -> None:
    """The chunks of a body make no difference, whether it is a form or not."""
    for content_type in ("application/json", FORM.format("xyz")):
        whole = digest_of(body, content_type=content_type)
        assert digest_of(body, *cuts, content_type=content_type) == whole


@given(st.lists(st.integers(0, 300), max_size=8), st.sampled_from(["a", "----B7", "Z'(x)"]))
def test_a_boundary_makes_no_difference(cuts: list[int], boundary: str) -> None:
    """A retry has another boundary and other chunks."""
    one = digest_of(form_of("0123", FIELD, FILE), content_type=FORM.format("0123"))
    # A boundary of one letter occurs in the content too, so the body is hashed as it was sent.
    other = digest_of(form_of(boundary, FIELD, FILE), *cuts, content_type=FORM.format(boundary))
    assert (one == other) == (boundary != "a")


def all_different() -> dict[str, str]:
    """Return requests of which no two are the same."""
    form = form_of("B", FIELD, FILE)
    plain = {"content_type": "text/plain"}
    bound = {"content_type": FORM.format("B")}
    evil = (FILE[0], "AAA('g', 'evil')")
    return {
        "empty": digest_of(b""),
        "action": digest_of(b"", action="b"),
        "path": digest_of(b"", path=b"/items/1"),
        "path with a line break": digest_of(b"", path=b"/items/1%0A"),
        "path with a number sign": digest_of(b"", path=b"/items/1%23"),
        "path with its escape": digest_of(b"", path=b"/items/1%2523"),
        "path with a question mark": digest_of(b"", path=b"/items/1%3Fa=1"),
        "query": digest_of(b"", path=b"/items/1", query=b"a=1"),
        "query in the path's place": digest_of(b"", path=b"/items/1a=1"),
        "body": digest_of(b"a"),
        "type": digest_of(b"a", **plain),
        "encoding": digest_of(b"a", content_encoding="gzip", **plain),
        "type of two": digest_of(b"a", content_type="text/plain", Content_Type="text/plain"),
        "form": digest_of(form, **bound),
        "form as text": digest_of(form, **plain),
        "form in another charset": digest_of(form, content_type=FORM.format("B") + ";charset=x"),
        "form of another kind": digest_of(form, content_type="multipart/mixed; boundary=B"),
        "form, the other way": digest_of(form_of("B", FILE, FIELD), **bound),
        "form with a field in the file": digest_of(form_of("B", evil), **bound),
        "form with a field less": digest_of(form_of("B", FILE), **bound),
        "form with another name": digest_of(
            form_of("B", (FIELD[0].replace("g", "h"), "evil"), FILE), **bound
        ),
        "form with another file name": digest_of(
            form_of("B", FIELD, (FILE[0].replace("x", "y"), "AAA")), **bound
        ),
        "form that begins with more": digest_of(b"more\r\n" + form, **bound),
        "form that ends with more": digest_of(form + b"more", **bound),
        "form without an end": digest_of(form[:-4], **bound),
        "form that has the boundary in a file": digest_of(
            form_of("B", FIELD, (FILE[0], "B")), **bound
        ),
        "form that has another there": digest_of(
            form_of("Z", FIELD, (FILE[0], "Z")), content_type=FORM.format("Z")
        ),
        "form with two boundaries": digest_of(
            form_of("B", FIELD, FILE), content_type=FORM.format("B") + "; boundary=C"
        ),
        "form of another boundary than named": digest_of(form, content_type=FORM.format("C")),
    }


def test_different_requests_have_different_fingerprints() -> None:
    """Any difference between two requests gives different fingerprints."""
    found = all_different()
    by_digest: dict[str, list[str]] = {}
    for name, digest in found.items():
        by_digest.setdefault(digest, []).append(name)
    assert [names for names in by_digest.values() if len(names) > 1] == []


@given(st.text("-\r\nA ", max_size=40))
def test_text_that_looks_like_a_boundary_is_content(content: str) -> None:
    """A file that contains the boundary is another file if the boundary changes everywhere."""
    other = content.replace("A", "B")
    one_digest = digest_of(form_of("A", (FILE[0], content)), content_type=FORM.format("A"))
    other_digest = digest_of(form_of("B", (FILE[0], other)), content_type=FORM.format("B"))
    is_delimiter = "\r\n--A\r\n" in f"\r\n{content}\r\n" or "\r\n--A--" in f"\r\n{content}"
    if content == other:
        assert one_digest == other_digest
    elif not is_delimiter:
        assert one_digest != other_digest


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        FORM.format(""),
        FORM.format("x" * 71),
        "\xff\x00;;=",
        "a" * 100_000,
        "multipart/form-data; boundary=" + ";" * 100_000,
        "multipart/form-data;boundary=a b",
    ],
)
def test_a_hostile_content_type_is_hashed_as_it_is(content_type: str) -> None:
    """The body is hashed as it was sent."""
    one, other = (digest_of(body, content_type=content_type) for body in (b"a", b"b"))
    assert one != other
    assert one != digest_of(b"a", content_type=content_type + "x")


def test_a_form_of_too_many_parts_is_hashed_as_it_was_sent() -> None:
    """Parts cost more than bytes, so their number is limited."""
    parts = [FIELD] * 2001
    digests = {digest_of(form_of(b, *parts), content_type=FORM.format(b)) for b in ("0123", "4567")}
    assert len(digests) == 2
