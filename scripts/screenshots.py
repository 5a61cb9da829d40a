"""Makes the pictures of the demo's page that the documentation shows, in headless Chromium.

    .venv/bin/nearzero demo && .venv/bin/python scripts/screenshots.py nearzero-demo

docs/demo-1280.png and docs/demo-390.png are the whole page at both widths, docs/demo.png its upper part.
"""

import io
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import open_page  # noqa: E402


def main(folder: Path) -> None:
    """Opens the page of a demo at both widths and writes the pictures; says what a browser complains of."""
    for width in (1280, 390):
        seen = open_page(folder / "index.html", width)
        if seen.messages or seen.broken or seen.width > width:
            sys.exit(f"{folder}: {seen.messages}, {seen.broken} pictures missing, {seen.width} pixels wide")
        picture = Image.open(io.BytesIO(seen.png)).convert("RGB")
        _save(picture, ROOT / f"docs/demo-{width}.png")
        if width == 1280:
            _save(picture.crop((0, 0, width, 1950)), ROOT / "docs/demo.png")


def _save(picture: Image.Image, path: Path) -> None:
    """A PNG of 256 colours, the rare ones of thin lines among them."""
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
