"""The link check finds links in the documentation that lead nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.site_links import broken_links

PAGE = '<a id="here"></a><img src="picture.png"><a href="{}">link</a>'


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Two pages and a picture."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "picture.png").touch()
    (tmp_path / "sub" / "picture.png").touch()
    (tmp_path / "sub" / "index.html").write_text(PAGE.format("../page.html#here"))
    return tmp_path


@pytest.mark.parametrize(
    "link", ["sub/#here", "sub/index.html", "#here", "picture.png", "https://example.org/x", "?q=1"]
)
def test_a_link_that_leads_somewhere_passes(site: Path, link: str) -> None:
    """Links to a page, a directory, an anchor, a file or another site pass."""
    (site / "page.html").write_text(PAGE.format(link))
    assert broken_links(site) == []


@pytest.mark.parametrize("link", ["nowhere.html", "sub/#nowhere", "#nowhere", "../page.html"])
def test_a_link_that_leads_nowhere_is_named_with_its_page(site: Path, link: str) -> None:
    """A missing page and a missing anchor are named with the page that links to them."""
    (site / "page.html").write_text(PAGE.format(link))
    assert broken_links(site) == [f"page.html: {link}"]
