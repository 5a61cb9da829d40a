"""A page: sections of text, pictures, tables and commands in one HTML file that asks for nothing else.

Everything that is shown is escaped; pictures are data URIs; a Content-Security-Policy forbids scripts and requests.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

import nearzero
from nearzero.errors import ArgumentError
from nearzero.files import write_bytes


@dataclass(frozen=True)
class Picture:
    """A PNG or SVG with a text that stands in for it and a caption; `pixels` keeps enlarged pixels square."""

    content: bytes
    alt: str
    caption: str
    pixels: bool = False

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        kind = "image/png" if self.content.startswith(b"\x89PNG") else "image/svg+xml"
        return f"data:{kind};base64,{base64.b64encode(self.content).decode('ascii')}"


@dataclass(frozen=True)
class Table:
    """Rows of cells below a header; the first cell of a row names it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ArgumentError(f"a table of {len(self.header)} columns has a row of {len(row)}: {list(row)}")


@dataclass(frozen=True)
class Section:
    """A heading with, in this order: paragraphs, pictures side by side, tables, items of a list, commands."""

    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    items: Sequence[str] = ()
    commands: str = ""


@dataclass(frozen=True)
class Page:
    """A title, a few sentences on what this is, sections, and a line on where it comes from."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section]
    origin: str = ""

    def html(self) -> str:
        """The whole page."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("nearzero.report", "."),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("page.html").render(page=self, version=nearzero.__version__)

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a file is a page that nearzero wrote."""
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return b'content="nearzero ' in file.read(2000)

    def write(self, path: Path) -> None:
        """Writes the page whole or not at all. Raises DiskError."""
        write_bytes(path, self.html().encode("utf-8", "backslashreplace"))
