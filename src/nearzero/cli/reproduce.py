"""nearzero reproduce."""

from __future__ import annotations

import csv
import importlib
import io
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nearzero.cli.common import emit, json_option
from nearzero.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nearzero.experiments.theory import Found
    from nearzero.report.page import Page, Picture


class Experiment(NamedTuple):
    """A line for the list; `home` and `name` are the module and the function, in experiments/ and in report/ alike."""

    line: str
    home: str
    name: str

    def of(self, package: str) -> Any:
        """The function of one package, loaded when it is called."""
        return getattr(importlib.import_module(f"nearzero.{package}.{self.home}"), self.name)


EXPERIMENTS = {
    "exponents": Experiment(
        "How singular the best network is at both ends, schedule by schedule.", "theory", "exponents"
    ),
    "etsdm-snr": Experiment("SNR of Modified-NS and of remapped times (E-TSDM, Fig. A8, A9).", "theory", "etsdm_snr"),
    "edm-ode": Experiment("The ODE of two points on the line: VP, VE and EDM (EDM, Fig. 3).", "theory", "edm_ode"),
    "edm-denoiser": Experiment("The best denoiser of the embedded images (EDM, Fig. 1b).", "theory", "edm_denoiser"),
    "solvers": Experiment("Error over network evaluations, every solver; minutes.", "solvers", "solvers"),
    "edm-steps": Experiment("The error of one Heun step over sigma and rho (EDM, Appendix D).", "solvers", "edm_steps"),
    "edm-churn": Experiment("Churn on exact and trained denoisers (EDM, Section 4); minutes.", "solvers", "edm_churn"),
}


@click.command()
@click.argument("name", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the page, the pictures and the numbers.  [default: nearzero-NAME]",
)
@json_option
def command(name: str | None, out: Path | None, as_json: bool) -> None:
    """Compute a figure or a table of the papers anew; without NAME, list what there is.

    \b
    nearzero reproduce
    nearzero reproduce exponents --out exponents

    Writes DIR/index.html, a page; PNG files; DIR/NAME.csv and DIR/NAME.json, the numbers. Most take
    seconds; `solvers` and `edm-churn` take minutes.
    """
    from nearzero.report.page import Page, Section

    if name is None:
        if out is not None:
            raise ArgumentError(f"--out {out}: name what to reproduce; nearzero reproduce lists the names")
        lines = {key: one.line for key, one in EXPERIMENTS.items()}
        width = max(map(len, lines))
        text = "\n".join(f"{key.ljust(width)}  {line}" for key, line in lines.items())
        emit({"command": "reproduce", "experiments": lines}, text, as_json)
        return
    if name not in EXPERIMENTS:
        raise ArgumentError(f"unknown experiment {name!r}; {did_you_mean(name, EXPERIMENTS)}")
    out = Path(f"nearzero-{name}") if out is None else out
    check_folder(out)
    origin = f"nearzero reproduce {name} --out {shlex.quote(str(out))}"
    found = EXPERIMENTS[name].of("experiments")()
    pictures, tables = EXPERIMENTS[name].of("report")(found)
    section = Section("What came out", found.text, list(pictures.values()), tables)
    files = write_page(out, Page(found.title, (found.lead,), (section,), origin), pictures)
    files += _numbers(out, name, found, origin)
    page = str(out / "index.html")
    document = {"command": "reproduce", "name": name, "page": page, "files": files, "summary": found.summary}
    emit(document, f"{page}: open it in a browser; beside it {', '.join(files[1:])}", as_json)


def write_page(out: Path, page: Page, pictures: Mapping[str, Picture]) -> list[str]:
    """Writes index.html and beside it the pictures, each whole or not at all, and returns the files' names."""
    from nearzero.files import write_bytes

    page.write(out / "index.html")
    for name, picture in pictures.items():
        write_bytes(out / name, picture.content)
    return ["index.html", *pictures]


def check_folder(out: Path) -> None:
    """Raises before anything is computed where the folder cannot be made, or holds what is not nearzero's."""
    from nearzero.files import check_writable
    from nearzero.report.page import Page

    check_writable(out)
    if out.is_dir() and any(out.iterdir()) and not Page.is_one(out / "index.html"):
        raise ArgumentError(f"--out {out} holds files and no page of nearzero's; choose another --out")


def _numbers(out: Path, name: str, found: Found, origin: str) -> list[str]:
    """Writes the rows as CSV, below a comment with the command, and the summary as JSON; returns the files' names."""
    from nearzero.files import write_bytes, write_json

    text = io.StringIO()
    text.write(f"# {origin}\n")
    csv.writer(text, lineterminator="\n").writerows([found.header, *found.rows])
    write_bytes(out / f"{name}.csv", text.getvalue().encode("utf-8", "backslashreplace"))
    write_json(out / f"{name}.json", {"command": origin, "name": name, **found.summary})
    return [f"{name}.csv", f"{name}.json"]
