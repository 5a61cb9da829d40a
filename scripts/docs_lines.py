"""Puts the line numbers in README.md and docs/ right.

A page names a line of src/nearzero as `solvers/sde.py:53` and quotes it: the next thing in backticks, on the same line
of the page, is a part of line 53, spaces aside. Blocks between fences are left alone. When code has moved, each number
follows its quote, to the nearest line that holds it; what cannot be found is printed, and the exit code is 1.

    python scripts/docs_lines.py
"""

import re
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMMAND = ".venv/bin/python scripts/docs_lines.py"
SPAN = re.compile(r"`([^`\n]+)`")
NAMED = re.compile(r"([\w./-]+\.py):(\d.*)")


class Reference(NamedTuple):
    """A line that a page names; text[start:end] is its number, and the quote is None where there is none."""

    start: int
    end: int
    file: str
    number: str
    quote: str | None

    def __str__(self) -> str:
        return f"`{self.file}:{self.number}`"


def references(text: str) -> list[Reference]:
    """Every line of code that a page names, in order."""
    found, at, fenced = [], 0, False
    for line in text.splitlines(keepends=True):
        fenced ^= line.startswith("```")
        spans = [] if fenced else list(SPAN.finditer(line))
        for span, after in zip_longest(spans, spans[1:]):
            named = NAMED.fullmatch(span[1])
            if named:
                quote = None if after is None or NAMED.fullmatch(after[1]) else after[1]
                start = at + span.start(1) + named.start(2)
                found.append(Reference(start, start + len(named[2]), named[1], named[2], quote))
        at += len(line)
    return found


def lines(reference: Reference, source: Path) -> list[int]:
    """The numbers of all lines that hold the quote. Raises LookupError, in one line, where there are none."""
    if not reference.number.isdecimal():
        raise LookupError(f"{reference} is not one line; name one")
    if reference.quote is None:
        raise LookupError(f"{reference} has no quote; put that line of code in backticks behind it, on the same line")
    if not (source / reference.file).is_file():
        raise LookupError(f"{reference}: there is no such file; name it from src/nearzero on")
    code = (source / reference.file).read_text(encoding="utf-8").split("\n")
    quote = _squeeze(reference.quote)
    found = [number for number, line in enumerate(code, 1) if quote in _squeeze(line)]
    if not found:
        raise LookupError(f"{reference}: no line of the file holds `{quote}`; quote the code as it is now")
    return found


def check(text: str, source: Path = ROOT / "src/nearzero") -> list[str]:
    """What is wrong with the lines that a page names, one line each; empty if every one is where the page says."""
    wrong = []
    for reference in references(text):
        try:
            found, number = lines(reference, source), reference.number
            if int(number) not in found:
                wrong.append(f"{reference}: `{reference.quote}` is on line {' and '.join(map(str, found))}")
            elif {int(number) - 1, int(number) + 1} & set(found):
                wrong.append(f"{reference}: the next line holds `{reference.quote}` too; quote more of it")
        except LookupError as error:
            wrong.append(str(error))
    return wrong


def mend(text: str, source: Path = ROOT / "src/nearzero") -> tuple[str, list[str], list[str]]:
    """The page with every number at its quote, the numbers that moved, and what a person must mend."""
    moved, wrong = [], []
    for reference in reversed(references(text)):  # from the end, so that what is still to come stays where it is
        try:
            found, old = lines(reference, source), int(reference.number)
            nearest, *others = sorted(found, key=lambda line: abs(line - old))
            if others and abs(others[0] - old) == abs(nearest - old):
                raise LookupError(f"{reference}: lines {others[0]} and {nearest} are as near; quote more of the line")
            if nearest != old:
                text = text[: reference.start] + str(nearest) + text[reference.end :]
                moved.append(f"{reference} -> {nearest}" + (f", the nearest of {len(found)}" if others else ""))
        except LookupError as error:
            wrong.append(str(error))
    return text, moved[::-1], wrong[::-1]


def _squeeze(code: str) -> str:
    return " ".join(code.split())


def main(root: Path = ROOT) -> int:
    """Rewrites the pages under `root` and prints what it did. The exit code."""
    failed = 0
    for page in (root / "README.md", *sorted((root / "docs").rglob("*.md"))):
        if not page.exists():
            continue
        text = page.read_text(encoding="utf-8")
        mended, moved, wrong = mend(text, root / "src/nearzero")
        if mended != text:
            page.write_text(mended, encoding="utf-8")
        for line in moved:
            print(f"{page.relative_to(root)}: {line}")
        for line in wrong:
            print(f"{page.relative_to(root)}: {line}", file=sys.stderr)
        failed += len(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
