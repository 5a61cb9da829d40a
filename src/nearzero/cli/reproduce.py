"""nearzero reproduce."""

from __future__ import annotations

import importlib
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from nearzero.cli.common import device_option, emit, json_option, load_images, pick_device, reporting, say
from nearzero.errors import ArgumentError, DataError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nearzero.experiments.committed import Check, Result
    from nearzero.report.page import Page, Picture


VERIFY_HELP = "Compare a kept result, results/*/NAME.json, with a rerun at smoke size; a minute or two."


class Experiment(NamedTuple):
    """A line for the list; `home` and `name` are the module and the function, in experiments/ and in report/ alike.

    One that trains takes a budget, images and a device, and keeps its runs in --out.
    """

    line: str
    home: str
    name: str
    trains: bool = False

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
    "full-table1": Experiment(
        "Likelihood and samples with and without truncated time (FullDiffusion).", "full", "full_table1", trains=True
    ),
    "full-figure1": Experiment(
        "What strata and solvers of FullDiffusion do (its Fig. 1).", "full", "full_figure1", trains=True
    ),
    "sharing-pair": Experiment(
        "Where E-TSDM's and DDPM's samples part: tails, swaps, losses.", "sharing", "sharing_pair", trains=True
    ),
    "sharing-mixture": Experiment(
        "What sharing costs and gives back where the best network is known.", "mixture", "sharing_mixture", trains=True
    ),
}


@click.command()
@click.argument("name", required=False)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of the page, the pictures and the numbers.  [default: nearzero-NAME]",
)
@click.option(
    "--budget", type=click.Choice(["smoke", "small", "gpu"]), help="Of experiments that train.  [default: smoke]"
)
@click.option("--data", type=click.Path(path_type=Path), metavar="DIR", help="Images to train on, and --test's.")
@click.option("--test", type=click.Path(path_type=Path), metavar="DIR", help="Images to measure on.")
@click.option("--size", type=click.IntRange(min=1), metavar="S", help="Bring the images of --data to S pixels.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), metavar="K", help="Of training and draws.  [default: 0]")
@click.option("--verify", type=click.Path(path_type=Path), metavar="FILE", help=VERIFY_HELP)
@device_option
@json_option
def command(name: str | None, out: Path | None, verify: Path | None, device: str, as_json: bool, **asked: Any) -> None:
    """Compute a figure or a table of the papers anew; without NAME, list what there is.

    \b
    nearzero reproduce
    nearzero reproduce exponents --out exponents
    nearzero reproduce full-table1 --data fashion-mnist --test fashion-mnist/test
    nearzero reproduce --verify results/full-table1-smoke/full-table1.json

    Writes DIR/index.html, a page; PNG files; DIR/NAME.csv and DIR/NAME.json, the numbers. Most take seconds; `solvers`
    and `edm-churn` take minutes, and those that train as long as their budget says: a call that was cut short goes on.
    """
    from nearzero.experiments import committed
    from nearzero.report.page import Page, Section

    if verify is not None:
        _refuse({"NAME": name, "--out": out, **{f"--{option}": value for option, value in asked.items()}})
        return _verify(verify, pick_device(device), as_json)
    if name is None:
        for option, value in {"out": out, **asked}.items():
            if value is not None:
                raise ArgumentError(f"--{option} {value}: name what to reproduce; nearzero reproduce lists the names")
        lines = {key: one.line for key, one in EXPERIMENTS.items()}
        width = max(map(len, lines))
        text = "\n".join(f"{key.ljust(width)}  {line}" for key, line in lines.items())
        emit({"command": "reproduce", "experiments": lines}, text, as_json)
        return
    if name not in EXPERIMENTS:
        raise ArgumentError(f"unknown experiment {name!r}; {did_you_mean(name, EXPERIMENTS)}")
    out = Path(f"nearzero-{name}") if out is None else out
    experiment = EXPERIMENTS[name]
    check_folder(out, experiment.trains)
    given = {option: str(value) for option, value in asked.items() if value is not None}
    given |= {} if device == "auto" else {"device": device}
    if given and not experiment.trains:
        raise ArgumentError(f"--{next(iter(given))} is of experiments that train; {name} takes --out alone")
    options = "".join(f" --{option} {shlex.quote(value)}" for option, value in given.items())
    origin = f"nearzero reproduce {name}{options} --out {shlex.quote(str(out))}"
    compute = experiment.of("experiments")
    device = pick_device(device) if experiment.trains else "cpu"
    found = compute(_setting(experiment, out, device, **asked)) if experiment.trains else compute()
    pictures, tables = EXPERIMENTS[name].of("report")(found)
    section = Section("What came out", found.text, list(pictures.values()), tables)
    files = write_page(out, Page(found.title, (found.lead,), (section,), origin), pictures)
    files += committed.write(out, name, found, origin, device)
    page = str(out / "index.html")
    document = {"command": "reproduce", "name": name, "page": page, "files": files, "summary": found.summary}
    emit(document, f"{page}: open it in a browser; beside it {', '.join(files[1:])}", as_json)


def _setting(
    experiment: Experiment,
    out: Path,
    device: str,
    budget: str | None,
    data: Path | None,
    test: Path | None,
    size: int | None,
    seed: int | None,
) -> Any:
    """What an experiment that trains is run on."""
    from nearzero.experiments.setting import setting

    budgets = importlib.import_module(f"nearzero.experiments.{experiment.home}").BUDGETS
    images, tested = (None if one is None else load_images(one, size, None) for one in (data, test))
    return setting(budgets, budget or "smoke", out, reporting, images, tested, seed or 0, device)


def _refuse(given: Mapping[str, Any]) -> None:
    """Raises ArgumentError for what has no meaning beside --verify: the file says it all."""
    for option, value in given.items():
        if value is not None:
            raise ArgumentError(f"{option} {value} and --verify exclude each other: the file names its own command")


def _verify(path: Path, device: str, as_json: bool) -> None:
    """Reruns one seed of a result at smoke size and compares the numbers."""
    from nearzero.experiments import committed

    result = committed.read(path)
    if result.name not in EXPERIMENTS:
        raise DataError(f"{path} is of an unknown experiment {result.name!r}; {did_you_mean(result.name, EXPERIMENTS)}")
    experiment, options = EXPERIMENTS[result.name], result.options()
    reference = committed.smoke(result) if experiment.trains else result
    if not result.sealed:
        say(f"note: {path} was written before results were sealed; whether it was edited cannot be told")
    with tempfile.TemporaryDirectory(prefix="nearzero-verify-") as folder:
        compute = experiment.of("experiments")
        options = options if reference is None else reference.options()
        found = compute(_again(experiment, Path(folder), device, options)) if experiment.trains else compute()
    here = committed.machine(device if experiment.trains else "cpu")
    check = None if reference is None else committed.compare(reference, found, here)
    document = {
        "command": "reproduce",
        "verified": str(path),
        "name": result.name,
        "sealed": result.sealed,
        "compared_with": None if reference is None else str(reference.path),
        "check": None if check is None else check._asdict(),
    }
    emit(document, _said(path, result, reference, check), as_json)


def _again(experiment: Experiment, out: Path, device: str, options: Mapping[str, str]) -> Any:
    """The setting of a rerun at smoke size: the command's images and seed."""
    data, test = (Path(options[name]) if name in options else None for name in ("data", "test"))
    seed, size = options.get("seed", "0"), options.get("size")
    if not (seed.isascii() and seed.isdigit() and int(seed) < 2**32):
        raise DataError(f"the result's command has --seed {seed}, which is none; make it anew")
    if not (size is None or (size.isascii() and size.isdigit() and int(size) > 0)):
        raise DataError(f"the result's command has --size {size}, which is none; make it anew")
    side = None if size is None else int(size)
    return _setting(experiment, out, device, budget="smoke", data=data, test=test, size=side, seed=int(seed))


def _said(path: Path, result: Result, reference: Result | None, check: Check | None) -> str:
    """What was found, in two lines."""
    whole = "whole, by its seal" if result.sealed else "without a seal"
    if reference is None or check is None:
        return f"{path}: {whole}\nits command runs at smoke size; there is no smoke result beside it to compare with"
    of = "" if reference.path == path else f" of {reference.path}"
    kind = "as this kind of machine must" if check.same_machine else "the others within their intervals"
    return f"{path}: {whole}\na rerun gives {check.same:,} of {check.numbers:,} numbers{of} to the last digit, {kind}"


def write_page(out: Path, page: Page, pictures: Mapping[str, Picture]) -> list[str]:
    """Writes index.html and beside it the pictures, each whole or not at all, and returns the files' names."""
    from nearzero.files import write_bytes

    page.write(out / "index.html")
    for name, picture in pictures.items():
        write_bytes(out / name, picture.content)
    return ["index.html", *pictures]


def check_folder(out: Path, trains: bool = False) -> None:
    """Raises before anything is computed where the folder cannot be made, or holds what is not nearzero's."""
    from nearzero.files import check_writable
    from nearzero.report.page import Page

    check_writable(out)
    begun = trains and (out / "runs").is_dir()
    if out.is_dir() and any(out.iterdir()) and not begun and not Page.is_one(out / "index.html"):
        raise ArgumentError(f"--out {out} holds files and no page of nearzero's; choose another --out")
