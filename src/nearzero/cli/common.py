"""What commands share: options, seeds, devices, progress, the JSON document."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import nearzero
from nearzero.errors import ArgumentError, CheckpointError, DataError

if TYPE_CHECKING:
    from nearzero.data.folder import Bad
    from nearzero.data.images import Images
    from nearzero.run import Run


def printable(text: str) -> str:
    r"""Text that cannot speak to a terminal: all but printable characters and line breaks is escaped.

    >>> print(printable(chr(27) + "[31mred"))
    \x1b[31mred
    """
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document on stdout; everything else goes to stderr."
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)

Advance = Callable[[int, str], None]


def say(message: str = "") -> None:
    """A line for people, on stderr."""
    print(printable(message), file=sys.stderr, flush=True)


def emit(document: dict[str, Any], text: str, as_json: bool) -> None:
    """The result, on stdout: one JSON document, or a line."""
    print(
        json.dumps({"schema_version": 1, "nearzero": nearzero.__version__, **document}) if as_json else printable(text),
        flush=True,
    )


def pick_device(name: str) -> str:
    """The device that a --device option means. Raises ArgumentError where it is not there."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if there[device])
    if not there[name]:
        raise ArgumentError(f"--device {name}: this machine, or this build of torch, has none; use --device auto")
    return name


def parse_share(text: str) -> tuple[float, int]:
    """An interval and a number of cells as "100/5". Raises ArgumentError for anything else.

    >>> parse_share("100/5")
    (100, 5)
    """
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})\s*/\s*(\d{1,6})\s*", text)
    if match is None or not float(match[1]) or not int(match[2]):
        raise ArgumentError(
            f"--share {text!r}: write INTERVAL/CELLS, as in 100/5: five cells of the first 100 timesteps"
        )
    return float(match[1]) if "." in match[1] else int(match[1]), int(match[2])


def parse_seeds(text: str) -> list[int]:
    """Seeds as "0-63" or "1,5,10-12". Raises ArgumentError for anything else, repetitions and more than a million.

    >>> parse_seeds("3,10-12")
    [3, 10, 11, 12]
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        if match is None:
            raise ArgumentError(f"--seeds {text!r}: {part!r} is no seed; write them as 0-63 or 1,5,10-12")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ArgumentError(f"--seeds {text!r}: {part!r} counts down; write {last}-{first}")
        if last >= 2**32:
            raise ArgumentError(f"--seeds {text!r}: {last} is too large; seeds go up to 2^32 - 1")
        if len(seeds) + last - first >= 1_000_000:
            raise ArgumentError(f"--seeds {text!r}: more than a million seeds; sample them in parts")
        seeds += range(first, last + 1)
    if len(set(seeds)) != len(seeds):
        raise ArgumentError(f"--seeds {text!r} repeats a seed; each names one file")
    return seeds


@contextlib.contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """A bar with rate and time left on a terminal, a line every ten seconds elsewhere; yields advance(count, note)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(label, total, unit).advance
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        _speed_column(unit),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda count, note="": bar.update(task, advance=count, note=note)


@contextlib.contextmanager
def reporting(label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """The same for work that tells its own total: yields show(done, of), whose first call opens the bar."""
    seen = 0
    with contextlib.ExitStack() as stack:
        bar: Advance | None = None

        def show(done: int, of: int) -> None:
            nonlocal bar, seen
            if bar is None:
                bar = stack.enter_context(progress(label, of, unit))
            bar(done - seen, "")
            seen = done

        yield show


def _speed_column(unit: str) -> Any:
    from rich.progress import ProgressColumn, Task
    from rich.text import Text

    class Speed(ProgressColumn):
        """Units per second."""

        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:,.0f} {unit}/s")

    return Speed()


class _Lines:
    """Progress for logs."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, 0
        self.start = self.said = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said < 10 and (self.done < self.total or now - self.start < 2):
            return
        self.said = now
        rate = self.done / (now - self.start)
        left = duration((self.total - self.done) / rate)
        percent = 100 * self.done / self.total
        say(f"{self.label}: {percent:3.0f} %  {rate:,.0f} {self.unit}/s  {left} left  {note}".rstrip())


def duration(seconds: float) -> str:
    """Seconds for people: 42 s, 3 min 20 s, 5 h 12 min, 3.2 days."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 2 * 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds / 86400:,.1f} days"


def is_named(data: str | Path) -> bool:
    """Whether --data names a public data set, and no folder or file of that name is there."""
    from nearzero.data.named import SPLITS

    return str(data) in SPLITS and not Path(data).exists()


def check_apart(data: str | Path | None, out: Path, what: str) -> None:
    """Raises ArgumentError where what is written would lie among the images, or they in it; `what` they are."""
    if data is not None and not is_named(data):
        a, b = Path(data).resolve(), out.resolve()
        if a == b or a in b.parents or b in a.parents:
            raise ArgumentError(f"--out {out} and {what} {data} lie in each other; choose another --out")


def load_images(
    data: str | Path | None,
    size: int | None,
    channels: int | None,
    bad: Bad = "error",
    on_bad: Callable[[str, str], object] = lambda path, what: None,
) -> Images:
    """The images of a folder, archive or array, with progress, a named data set, or the embedded ones.

    What is done with each bad image is said, and told to `on_bad`.
    """
    from nearzero.data import embedded, read_images
    from nearzero.data.named import named

    def tell(path: Any, what: str) -> None:
        say(f"nearzero: warning: {path} {what}")
        on_bad(str(path), what)

    if data is None:
        if channels not in (None, 1):
            raise ArgumentError(f"--channels {channels}: the embedded images are grey; give a folder with --data")
        return embedded(size)
    if is_named(data):
        return named(str(data)).fitted(size, channels)
    with reporting("reading images", "images") as show:
        return read_images(data, size=size, channels=channels, bad=bad, on_bad=tell, progress=show)


def run_images(run: Run, data: Path | None) -> Images:
    """The images of --data, or those that the run was trained on. Raises DataError where nobody says which.

    For a model of the package, trained on Fashion-MNIST, the embedded part stands in where the whole is not there.
    """
    from nearzero.zoo import is_model

    network, source = run.recipe.network, run.data.get("source") or {}
    if data is not None:
        return load_images(data, network.size, network.channels)
    if "data" not in source:
        raise DataError(f"{run.path} does not say which images it was trained on; name a folder with --data DIR")
    if not isinstance(source["data"], str | None):
        raise CheckpointError(
            f"{run.path / 'run.json'} names {source['data']!r} as its images; name a folder with --data DIR"
        )
    folder = None if source["data"] is None else Path(source["data"])
    if folder is not None and not folder.exists() and not is_named(folder):
        raise DataError(f"{run.path} was trained on {folder}, which is gone; name a folder with --data DIR")
    try:
        images = load_images(folder, network.size, network.channels, source.get("bad_images") or "error")
    except DataError:
        if not is_model(run.path) or source["data"] != "fashion-mnist":
            raise
        say("note: fashion-mnist is not on this machine; taking the 2,000 of its images that come with the package")
        return load_images(None, network.size, network.channels)
    if images.fingerprint() != run.data.get("fingerprint"):
        say(f"note: {images.name} has changed since {run.path} was trained on it")
    return images
