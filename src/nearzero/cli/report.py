"""nearzero report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nearzero.cli.common import device_option, emit, json_option, load_images, pick_device, reporting, run_images
from nearzero.cli.compare import check_page
from nearzero.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from nearzero.data.images import Images
    from nearzero.report.findings import Findings
    from nearzero.run import Run


@click.command()
@click.argument("path", metavar="PATH", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="The page.  [default: PATH/report.html]")
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="Images.  [default: what the run was trained on]"
)
@click.option(
    "--test", type=click.Path(path_type=Path), metavar="DIR", help="Held-out images.  [default: the data set's own]"
)
@click.option(
    "-n", "count", type=click.IntRange(0, 256), default=16, show_default=True, metavar="N", help="Samples; 0 for none."
)
@click.option(
    "--images",
    "probes",
    type=click.IntRange(0, 4096),
    default=16,
    show_default=True,
    metavar="N",
    help="For the diagnosis near t = 0; 0 for none.",
)
@device_option
@json_option
def command(
    path: Path,
    html: Path | None,
    data: Path | None,
    test: Path | None,
    count: int,
    probes: int,
    device: str,
    as_json: bool,
) -> None:
    """Write a page about PATH: a run, a reproduction, or any folder of runs.

    \b
    nearzero report runs/mine
    nearzero report runs/mine --html mine.html -n 64
    nearzero report nearzero-full-table1

    Of a run: a verdict, its recipe, the numbers in its folder, its training, samples and the training images nearest
    to them, the diagnosis near t = 0, events and faults, where it comes from. What is missing is said with the command
    that makes it. Cards that were edited are left out, and the exit code is 3.
    """
    from nearzero.interop.pipeline_run import is_pipeline, open_run
    from nearzero.run import is_run
    from nearzero.zoo import resolve, results

    target, asked, path = results(path) / "report.html" if html is None else html, path, resolve(path)
    if not path.is_dir():
        raise CheckpointError(f"{path} {'is no folder' if path.exists() else 'does not exist'}; name a run or a folder")
    check_page(target)
    line = shlex.join(["nearzero", *sys.argv[1:]])
    if is_run(path) or is_pipeline(path):
        found = _examine(open_run(path), data, test, count, probes, pick_device(device))
        from nearzero.report.run import page, verdict

        page(found, line).write(target)
        said, wrong = verdict(found), list(found.measured.damaged.values())
    else:
        from nearzero.report import folder

        listed = folder.read(path)
        folder.page(listed, line).write(target)
        said, wrong = folder.verdict(listed), listed.damaged
    document = {"command": "report", "path": str(asked), "page": str(target), "verdict": said}
    emit({**document, "damaged": list(map(str, wrong))}, "\n".join([*said, f"page: {target}"]), as_json)
    if wrong:
        raise type(wrong[0])(f"the page is written, without what is damaged: {wrong[0]}")


def _examine(run: Run, data: Path | None, test: Path | None, count: int, probes: int, device: str) -> Findings:
    """What the folder holds, and what the network shows as far as it can be asked."""
    from nearzero.report import findings

    found, missing = findings.on_disk(run), {}
    if not found.step and not found.damaged and not hasattr(run, "network"):
        missing |= dict.fromkeys(("Samples", "Near t = 0", "Nearest training images"), _untrained(run))
        return replace(found, missing=missing)
    run = run.pinned() if found.step else run
    attempt = findings.attempt
    images: Images | None = attempt(missing, "Near t = 0", lambda: _images(run, data))
    samples = attempt(missing, "Samples", lambda: findings.draw(run, count, device, reporting)) if count else None
    diagnosis = copies = None
    if images is not None:
        if probes:
            diagnosis = attempt(
                missing, "Near t = 0", lambda: findings.near_zero(run, images, probes, device, reporting)
            )
        if samples is not None:
            copies = attempt(missing, "Nearest training images", lambda: _copies(run, samples, images, test, missing))
    elif samples is not None:
        missing["Nearest training images"] = missing["Near t = 0"]
    return replace(found, samples=samples, copies=copies, diagnosis=diagnosis, missing=missing)


def _untrained(run: Run) -> str:
    return f"There is no checkpoint yet; train with: nearzero train --resume --out {run.path}"


def _images(run: Run, data: Path | None) -> Images:
    if not run.data and data is None:
        raise DataError(f"{run.path} does not say which images it was trained on; name some with --data DIR")
    return run_images(run, data)


def _copies(run: Run, samples: Any, images: Images, test: Path | None, missing: dict[str, str]) -> Any:
    """The nearest training images; what the control or the features lack is noted."""
    from nearzero.report import findings, neighbours

    def held() -> Any:
        if test is not None:
            return load_images(test, images.size, images.channels).pixels
        return neighbours.held_out(images.name, images.size, images.channels)

    notes: dict[str, str] = {}
    real = findings.attempt(notes, "control", held)
    extractor, why = neighbours.squeezenet()
    lacking = [*notes.values(), *([f"By features nothing was compared: {why}"] if why else [])]
    if lacking:
        missing["Nearest training images"] = " ".join(f"{one}." for one in lacking)
    return findings.copies(run, samples, images, real, extractor, reporting)
