"""What the package weighs: the wheel is small, and so is what a browser loads of Studio."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Final

import credit_mongo

PACKAGE: Final = Path(credit_mongo.__file__).parent
MOST_BYTES: Final = 2_000_000
MOST_BYTES_OF_STATIC_FILES: Final = 200_000


def test_the_wheel_weighs_less_than_two_megabytes() -> None:
    """With Studio's templates, style sheet and scripts, packed as a wheel is."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path in PACKAGE.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wheel.write(path, path.relative_to(PACKAGE.parent))
    assert len(packed.getvalue()) < MOST_BYTES


def test_the_files_of_a_page_weigh_little() -> None:
    """A page itself has at most 45 kB, so all that a browser loads stays below 300 kB."""
    static = PACKAGE / "studio" / "static"
    sizes = [path.stat().st_size for path in static.rglob("*") if path.is_file()]
    assert sum(sizes) < MOST_BYTES_OF_STATIC_FILES
