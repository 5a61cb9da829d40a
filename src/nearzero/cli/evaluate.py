"""nearzero evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nearzero.cli import sample
from nearzero.cli.common import device_option, json_option
from nearzero.errors import ArgumentError

EVERYWHERE = {"run", "data", "batch", "raw_weights", "step", "out", "html", "overwrite", "device", "as_json"}
SAMPLES = {"count", "seeds", "extractor", "through", "guidance", "guide", "guidance_interval"}
LEVELS = {"grid", "sigma_min", "sigma_max", "rho", "steps", "nfe"}
SAMPLER = {"step", "through", "guidance", "guide", "guidance_interval", *LEVELS, "solver", "eta", "churn"}
"""Options that are those of `nearzero sample`."""
OPTIONS: dict[str, set[str]] = {
    "nll": {"method", "images", "repeats", "rtol", "atol", "probes", "exact", "between_timesteps", "draws", "t_min"}
    | {"seed"},
    "fd": SAMPLES | SAMPLER,
    "pareto": SAMPLES | {"solvers", "grids", "nfes"},
    "search_churn": SAMPLES | LEVELS | {"churns", "churn_mins", "churn_maxs", "churn_noises"},
}
"""What each measure takes beside the options of all."""
NLL_HELP = "The density of the ODE, FullDiffusion's bound (Nu, W) or the bound from --t-min on.  [nll; default: ode]"
OUT_HELP = "The JSON.  [default: in RUN, named by the measure; of zoo:NAME in zoo-NAME]"
EXTRACTOR_HELP = "squeezenet, inception (the FID), classifier, or a file of weights of one of the first two."


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--nll", is_flag=True, help="Bits per dimension of images.")
@click.option("--fd", is_flag=True, help="The Frechet distance of samples to real images, as a card.")
@click.option("--pareto", is_flag=True, help="The same against network evaluations, for several samplers.")
@click.option("--search-churn", is_flag=True, help="The best noise for EDM's sampler, by successive halving.")
@click.option(
    "--data", "--reference", type=click.Path(path_type=Path), metavar="DATA", help="Images.  [default: the run's own]"
)
@click.option("-n", "count", type=click.IntRange(8, 1_000_000), metavar="N", help="Samples.  [default: 1000]")
@click.option("--seeds", metavar="0-999", help="Their seeds, one each.  [default: 0 to N-1]")
@click.option("--extractor", default="squeezenet", show_default=True, metavar="NAME", help=EXTRACTOR_HELP)
@click.option("--solvers", default="ddim,heun,dpm", show_default=True, metavar="A,B", help="Of --pareto.")
@click.option("--grids", metavar="A,B", help="Of --pareto.  [default: the recipe's]")
@click.option("--nfes", default="5,10,20,40,80", show_default=True, metavar="5,10", help="Of --pareto.")
@click.option("--churns", metavar="0,10", help="S_churn to try.  [default: 0,10,20,40,80]")
@click.option("--churn-mins", metavar="0,0.05", help="S_min to try.  [default: 0,0.05]")
@click.option("--churn-maxs", metavar="50,none", help="S_max to try.  [default: none,50]")
@click.option("--churn-noises", metavar="1,1.007", help="S_noise to try.  [default: 1,1.007]")
@click.option("--method", type=click.Choice(["ode", "bound", "truncated-bound"]), help=NLL_HELP)
@click.option("--images", type=click.IntRange(min=1), metavar="N", help="How many, of --nll.  [default: all]")
@click.option("--repeats", type=click.IntRange(min=1), default=1, show_default=True, metavar="K", help="Dithers each.")
@click.option("--rtol", type=float, metavar="R", help="Of the ODE, relative.  [default: 1e-5]")
@click.option("--atol", type=float, metavar="A", help="Of the ODE, absolute.  [default: 1e-5]")
@click.option("--probes", type=click.IntRange(min=1), metavar="P", help="Hutchinson's.  [default: 1]")
@click.option(
    "--exact", is_flag=True, default=None, help="The exact divergence: one backward pass for each number of an image."
)
@click.option(
    "--between-timesteps", is_flag=True, default=None, help="Let a network that was told whole timesteps interpolate."
)
@click.option("--draws", type=click.IntRange(min=1), metavar="N", help="Of a bound.  [default: 1000]")
@click.option("--t-min", type=float, metavar="T", help="Start at T instead of 0.  [truncated-bound: 1e-5]")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, metavar="K", help="Of draws.")
@click.option("--batch", type=click.IntRange(min=1), metavar="B", help="Images at once.  [default: 64; 256 on a GPU]")
@click.option("--raw-weights", is_flag=True, help="Use the weights themselves, not their average.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=OUT_HELP,
)
@click.option("--html", type=click.Path(path_type=Path), metavar="PAGE", help="Also write a page for a browser.")
@click.option("--overwrite", is_flag=True, help="Start again where FILE holds other settings.")
@device_option
@json_option
@click.pass_context
def command(context: click.Context, run: Path, **asked: Any) -> None:
    """Measure the run folder RUN: likelihood, distance of samples, distance against cost.

    \b
    nearzero evaluate runs/full_w --nll --images 1000
    nearzero evaluate runs/mine --fd -n 2000 --html fd.html
    nearzero evaluate runs/mine --pareto --solvers ddim,heun --nfes 5,10,20
    nearzero evaluate runs/edm --search-churn --nfe 35 -n 1000

    Results are kept while they are made, and a call that was cut short goes on when it is repeated. Options of the
    sampler are those of nearzero sample.
    """
    chosen = [measure for measure in OPTIONS if asked[measure]]
    if len(chosen) != 1:
        raise ArgumentError("name what to measure: --nll, --fd, --pareto or --search-churn, one of them")
    (measure,) = chosen
    _check_options(context, measure)
    if measure == "nll":
        from nearzero.cli.evaluate_nll import nll

        nll(run, asked)
        return
    from nearzero.cli import evaluate_quality

    getattr(evaluate_quality, measure)(run, asked)


command.params += [option for option in sample.command.params if option.name in SAMPLER]


def _check_options(context: click.Context, measure: str) -> None:
    """Raises ArgumentError for an option of another measure."""
    known = EVERYWHERE | OPTIONS[measure] | OPTIONS.keys()
    for parameter in context.command.params:
        name = parameter.name or ""
        if name in known or context.get_parameter_source(name) is click.core.ParameterSource.DEFAULT:
            continue
        owners = " or ".join(_option(owner) for owner, names in OPTIONS.items() if name in names)
        raise ArgumentError(f"{parameter.opts[0]} is no option of {_option(measure)}; use {owners}, or leave it out")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def check_targets(file: Path, html: Path | None) -> None:
    """Raises before anything is measured where a result cannot be written."""
    from nearzero.files import check_writable
    from nearzero.report.page import Page

    for name, target in (("--out", file), ("--html", html)):
        if target is not None:
            check_writable(target)
            if target.is_dir():
                raise ArgumentError(f"{name} {target} is a folder; name a file")
    if html is not None and html.resolve() == file.resolve():
        raise ArgumentError(f"--html {html} is the file of the JSON too; name another")
    if html is not None and html.exists() and not Page.is_one(html):
        raise ArgumentError(f"--html {html} exists and is no page of nearzero's; name another file")
