"""nearzero evaluate --fd, --pareto and --search-churn: distances of samples to real images."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearzero.cli import choices
from nearzero.cli.common import check_apart, emit, parse_seeds, pick_device, reporting, run_images, say
from nearzero.errors import ArgumentError, CheckpointError, did_you_mean

if TYPE_CHECKING:
    from nearzero.cards import Card
    from nearzero.metrics.extractors import ModuleExtractor
    from nearzero.production import Production
    from nearzero.run import Run
    from nearzero.yardstick import Progress, Reference

COUNT = 1000
UNITS = {"classifier": "steps", "points": "evaluations"}


def fd(run: Path, asked: dict[str, Any]) -> None:
    """Measures one card."""
    from nearzero.cards import write_card
    from nearzero.quality import measure, measured

    loaded, seeds, production = _opened(run, asked)
    with _stages() as show:
        reference = _reference(loaded, asked, show)
        file = asked["out"] or loaded.results / "fd.json"
        if not asked["out"] and not asked["overwrite"]:
            file = _free(file, production, seeds, reference)
        _check_file(file, asked)
        how = {**_how(file, asked), "progress": show}
        if asked["overwrite"] or not file.exists():
            card = measure(production, seeds, reference, **how)
            write_card(file, card)
        else:
            card = measured(file, production, seeds, reference, **how)
            say(f"read back from {file}; --overwrite measures anew")
    _finish("fd", card, file, production, reference, seeds, asked)


def search_churn(run: Path, asked: dict[str, Any]) -> None:
    """Searches EDM's noise and measures the choice."""
    from nearzero.cards import read_card, write_card
    from nearzero.quality import compact
    from nearzero.registry import encode
    from nearzero.search import CHURNS, HIGHS, LOWS, NOISES, candidates, search

    loaded, seeds, production = _opened(run, asked)
    tried = candidates(
        _numbers("--churns", asked["churns"]) or CHURNS,
        _numbers("--churn-mins", asked["churn_mins"]) or LOWS,
        _numbers("--churn-maxs", asked["churn_maxs"], none=True) or HIGHS,
        _numbers("--churn-noises", asked["churn_noises"]) or NOISES,
    )
    fresh = range(max(seeds) + 1, max(seeds) + 1 + len(seeds))
    file = asked["out"] or loaded.results / "churn.json"
    _check_file(file, asked)
    with _stages() as show:
        reference = _reference(loaded, asked, show)
        if file.exists() and not asked["overwrite"]:
            there = read_card(file)
            wanted = {"candidates": [encode(one) for one in tried], "seeds": compact(seeds)}
            found = {**_about(there), **there.made.get("search", {})}
            _check_kept(file, found, {**_outline(production, fresh, reference), **wanted})
        card = search(production, tried, seeds, fresh, reference, **_how(file, asked), progress=show)
    write_card(file, card)
    chosen = replace(production, solver=_decoded(card))
    _finish("search-churn", card, file, chosen, reference, fresh, asked)


def pareto(run: Path, asked: dict[str, Any]) -> None:
    """Measures a card for each solver, grid and budget, and says which to take."""
    from nearzero.files import read_json, write_bytes, write_json
    from nearzero.pareto import Point, document, table
    from nearzero.pareto import pareto as measure
    from nearzero.quality import compact

    loaded, seeds, _ = _opened(run, asked)
    file = asked["out"] or loaded.results / "pareto.json"
    _check_file(file, asked)
    points = [Point(*names, production) for names, production in _points(loaded, asked)]
    with _stages() as show:
        reference = _reference(loaded, asked, show)
        if file.exists() and not asked["overwrite"]:
            there = read_json(file)
            if not isinstance(there, dict) or there.get("measure") != "pareto":
                raise ArgumentError(f"{file} exists and is no --pareto of nearzero's; name another file")
            _check_kept(file, there, {**_outline(points[0].production, seeds, reference), "seeds": compact(seeds)})
        found = document(points, measure(points, seeds, reference, **_how(file, asked), progress=show))
    write_json(file, {"schema_version": 1, "measure": "pareto", **found})
    write_bytes(file.with_suffix(".csv"), table(found).encode())
    if asked["html"] is not None:
        from nearzero.report.quality import pareto_page

        pareto_page(found, _command()).write(asked["html"])
    shown = [one for one in found["points"] if one["recommended"]]
    lines = [f"{one['solver']} on {one['grid']}, {one['network_evaluations']:g} evaluations" for one in shown]
    near = sum(one["within"] for one in found["points"])
    text = f"take {lines[0]}: the cheapest of {near} of {len(points)} within the noise of the best\n  {file}"
    emit({"command": "evaluate", "measure": "pareto", "file": str(file), **found}, text, asked["as_json"])


def _opened(run: Path, asked: dict[str, Any]) -> tuple[Run, list[int], Production]:
    """The run at its newest checkpoint, the seeds, and the production that the options name."""
    from nearzero.cli.sample import check_options, production_of
    from nearzero.interop.pipeline_run import open_run

    given = {**asked, "label": None}
    if asked["pareto"]:
        given |= dict.fromkeys(("solver", "eta", "churn", "grid", "sigma_min", "sigma_max", "rho", "steps", "nfe"))
    if asked["search_churn"]:
        given |= {"solver": "churn", "eta": None, "churn": None}
    check_options(run, given)
    seeds = list(range(asked["count"] or COUNT)) if asked["seeds"] is None else parse_seeds(asked["seeds"])
    if asked["count"] not in (None, len(seeds)):
        raise ArgumentError(f"-n {asked['count']} and --seeds {asked['seeds']} disagree; leave one out")
    loaded = open_run(run).pinned(asked["step"])
    return loaded, seeds, production_of(loaded, given)


def _points(run: Run, asked: dict[str, Any]) -> Iterator[tuple[tuple[str, str], Production]]:
    """The names and the production of each point, solver by solver."""
    from nearzero.cli.sample import production_of

    solvers = _names("--solvers", asked["solvers"], choices.SOLVERS)
    grids = _names("--grids", asked["grids"], choices.GRIDS) if asked["grids"] else [None]
    budgets = [int(one) for one in _numbers("--nfes", asked["nfes"]) or ()]
    for solver in solvers:
        for grid in grids:
            for nfe in budgets:
                left = dict.fromkeys(("eta", "churn", "sigma_min", "sigma_max", "rho", "steps"))
                given = {**asked, **left, "solver": solver, "grid": grid, "nfe": nfe}
                production = production_of(run, given)
                yield (solver, grid or f"its own {type(production.grid).__name__}"), production


def _reference(run: Run, asked: dict[str, Any], show: Progress) -> Reference:
    from nearzero.yardstick import Reference

    images = run_images(run, asked["data"])
    extractor = _extractor(asked["extractor"], images, show)
    extractor.module.to(pick_device(asked["device"]))
    return Reference.of(images, extractor, show)


def _extractor(name: str, images: Any, show: Progress) -> ModuleExtractor:
    """The extractor of a name, or of a file of weights."""
    from nearzero.metrics import inception, squeezenet
    from nearzero.metrics.cache import read_weights
    from nearzero.metrics.classifier import classifier

    kinds: dict[str, Callable[[], ModuleExtractor]] = {
        "squeezenet": squeezenet.fetched,
        "inception": inception.fetched,
        "classifier": lambda: classifier(images, progress=lambda done, of: show("classifier", done, of)),
    }
    if name in kinds:
        return kinds[name]()
    path = Path(name)
    if not path.exists():
        raise ArgumentError(f"--extractor {name} is no file, nor a name; {did_you_mean(name, kinds)}")
    held = read_weights(path).keys()
    if "conv1.weight" in held:
        return squeezenet.load(path)
    if "layers.conv.weight" in held:
        return inception.load(path)
    raise CheckpointError(f"{path} holds weights of neither SqueezeNet nor Inception-v3; name another file")


def _how(file: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The arguments that all measures share; samples and features lie beside the result."""
    out = file.parent / "quality"
    check_apart(asked["data"], out, "the reference")
    return {"out": out, "batch": asked["batch"], "device": pick_device(asked["device"]), "tell": say}


def _free(file: Path, production: Production, seeds: Sequence[int], reference: Reference) -> Path:
    """The file, or where it is about something else, one whose name says what this is about."""
    from nearzero.cards import read_card
    from nearzero.quality import key, outline

    if not file.exists():
        return file
    card, asked = read_card(file), key(*outline(production, seeds, reference))
    return file if key(card.protocol, card.subject) == asked else file.with_name(f"{file.stem}-{asked}.json")


def _check_file(file: Path, asked: dict[str, Any]) -> None:
    from nearzero.cli.evaluate import check_targets

    check_targets(file, asked["html"])


def _about(card: Card) -> dict[str, Any]:
    """What must be equal where a result is made again."""
    return {"protocol": dict(card.protocol), **{name: card.subject[name] for name in ("checkpoint", "weights")}}


def _outline(production: Production, seeds: Sequence[int], reference: Reference) -> dict[str, Any]:
    """The same, before anything is measured."""
    from nearzero.quality import outline

    protocol, subject = outline(production, seeds, reference)
    return {"protocol": protocol, **{name: subject[name] for name in ("checkpoint", "weights")}}


def _check_kept(file: Path, there: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ArgumentError where a file holds a result about something else."""
    for name, value in wanted.items():
        if there.get(name) != value:
            raise ArgumentError(f"{file} differs in its {name} from what is asked; name another, or --overwrite it")


def _decoded(card: Card) -> Any:
    from nearzero.registry import decode

    return decode(dict(card.subject["solver"]))


def _finish(
    measure: str,
    card: Card,
    file: Path,
    production: Production,
    reference: Reference,
    seeds: Sequence[int],
    asked: dict[str, Any],
) -> None:
    """The page, and the card on stdout."""
    if asked["html"] is not None:
        from nearzero.quality import read_samples, samples_folder
        from nearzero.report.quality import SHOWN, page

        samples = read_samples(samples_folder(file.parent / "quality", production), list(seeds)[:SHOWN])
        real = reference.images.pixels[reference.order()[:SHOWN]]
        page(card, samples, real, _command()).write(asked["html"])
    lines = [card.text()]
    for name, one in card.others.items():
        error = "" if one.get("stderr") is None else f" +- {one['stderr']:.2g}"
        floor = "" if one.get("floor") is None else f"; real images {one['floor']:.4g}"
        lines.append(f"  {name:18}{one['value']:.4g}{error}{floor}")
    if "search" in card.made:
        lines.append(f"  solver            {_decoded(card)}")
    document = {"command": "evaluate", "measure": measure, "file": str(file), **asdict(card)}
    emit(document, "\n".join([*lines, f"  {file}"]), asked["as_json"])


def _command() -> str:
    return shlex.join(["nearzero", *sys.argv[1:]])


@contextlib.contextmanager
def _stages() -> Iterator[Progress]:
    """Progress that follows the stages of a measure, a bar each."""
    with contextlib.ExitStack() as stack:
        now: list[Any] = ["", None, 0]

        def show(stage: str, done: int, of: int) -> None:
            if stage != now[0] or done < now[2]:
                stack.close()
                now[:2] = stage, stack.enter_context(reporting(stage, UNITS.get(stage, "images")))
            now[2] = done
            now[1](done, of)

        yield show


def _names(option: str, text: str, known: dict[str, Any]) -> list[str]:
    """Names with commas between them. Raises ArgumentError for an unknown one, or one twice."""
    found = [one.strip() for one in text.split(",")]
    for one in found:
        if one not in known or found.count(one) > 1:
            raise ArgumentError(f"{option} {text!r}: {one!r} is unknown or there twice; {did_you_mean(one, known)}")
    return found


def _numbers(option: str, text: str | None, none: bool = False) -> list[Any] | None:
    """Numbers with commas between them, and None for "none" where that is allowed. Raises ArgumentError."""
    if text is None:
        return None
    found: list[float | None] = []
    for one in text.split(","):
        if none and one.strip() == "none":
            found.append(None)
        elif re.fullmatch(choices.NUMBER, one):
            found.append(float(one))
        else:
            raise ArgumentError(f"{option} {text!r}: {one!r} is no number; write them as in 0,0.05,1")
    return found
