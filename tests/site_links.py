"""Check that every link between the pages of a built site leads somewhere, anchors included.

    python -m tests.site_links site

Links to other sites are not followed. Prints one line per broken link. Exit code 1: there are some.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(eq=False)
class Page(HTMLParser):
    """A page's anchors, and the links and files that it refers to."""

    anchors: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Record the anchors and links of a tag."""
        for name, value in attrs:
            if name == "id" or (name == "name" and tag == "a"):
                self.anchors.add(value or "")
            elif name in ("href", "src") and value and tag != "base":
                self.links.append(value)


def broken_links(site: Path) -> list[str]:
    """Return the broken links of a site, each with its page."""
    pages = {path.resolve(): Page() for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        page.feed(path.read_text(encoding="utf-8"))
    # The 404 page is served at any address, so its relative links have no fixed base.
    pages_with_an_address = {path: page for path, page in pages.items() if path.name != "404.html"}
    return [
        f"{path.relative_to(site.resolve())}: {link}"
        for path, page in pages_with_an_address.items()
        for link in dict.fromkeys(page.links)
        if not _leads_somewhere(link, path, pages)
    ]


def _leads_somewhere(link: str, path: Path, pages: dict[Path, Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not parts.fragment or target not in pages:
        return target.is_file()
    return unquote(parts.fragment) in pages[target].anchors


def main() -> int:
    """Check the site named on the command line, and return the exit code."""
    site = Path(sys.argv[1])
    found = broken_links(site)
    for each in found:
        print(each)
    if not list(site.rglob("*.html")):
        print(f"{site} has no pages")
        return 1
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
