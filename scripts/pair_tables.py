"""The tables of results/pair16/README.md and its picture, out of the cards that lie beside it.

python scripts/pair_tables.py prints the tables and draws docs/sharing-pair.png.
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from nearzero.cards import Card, check_alike, paired, read_card

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "results/pair16"
SAMPLERS = {"ddim": "DDIM 50", "dpm": "DPM-Solver-3, 20"}
SEEDS, SEEN = (0, 1, 2), (32000, 64000)
LONG = (32000, 64000, 128000, 320000)
CELLS = {"ddpm-0": "none (ddpm)", "etsdm-0": "100/5", "etsdm-100-20": "100/20", "etsdm-20-1": "20/1"}
LOOK = {"ddpm": {"color": "#0072b2", "marker": "o"}, "etsdm": {"color": "#d55e00", "marker": "s"}}


def cards() -> dict[tuple[str, int, str], Card]:
    """Every card, by run, images seen and sampler. Raises ArgumentError where two were measured in different ways."""
    found = {path.stem: read_card(path) for path in sorted(FOLDER.glob("*.json"))}
    check_alike(found)
    return {(run, int(seen), sampler): card for (run, seen, sampler), card in _named(found)}


def _named(found: dict[str, Card]) -> list[tuple[list[str], Card]]:
    return [(name.rsplit("-", 2), card) for name, card in found.items()]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _head(*cells: str) -> list[str]:
    return [_row(*cells), "|" + "---|" * len(cells)]


def seeds(found: dict[tuple[str, int, str], Card]) -> list[str]:
    """Each network over three training seeds, and the mean of the paired differences with its 95 % interval."""
    lines = _head("images seen", "sampler", "ddpm, seeds 0, 1, 2", "etsdm", "etsdm - ddpm", "mean, 95 % interval")
    for seen in SEEN:
        for sampler, name in SAMPLERS.items():
            a, b = ([found[f"{one}-{seed}", seen, sampler].value for seed in SEEDS] for one in LOOK)
            mean, low, high = paired(b, a)
            told = [", ".join(f"{value:,.0f}" for value in values) for values in (a, b)]
            away = ", ".join(f"{y - x:+,.0f}" for x, y in zip(a, b, strict=True))
            lines.append(_row(f"{seen:,}", name, *told, away, f"{mean:+,.0f} [{low:+,.0f}, {high:+,.0f}]"))
    return lines


def _long(run: str, seen: int) -> str:
    return f"{run}-{0 if seen in SEEN else 'long'}"


def longer(found: dict[tuple[str, int, str], Card]) -> list[str]:
    """Seed 0, up to ten times the images."""
    lines = _head("images seen", "sampler", "ddpm", "etsdm", "etsdm - ddpm")
    for seen in LONG:
        for sampler, name in SAMPLERS.items():
            a, b = (found[_long(run, seen), seen, sampler].value for run in LOOK)
            lines.append(_row(f"{seen:,}", name, f"{a:,.0f}", f"{b:,.0f}", f"{b - a:+,.0f}"))
    return lines


def cells(found: dict[tuple[str, int, str], Card]) -> list[str]:
    """Seed 0 after 64,000 images, by cells."""
    lines = _head("interval/cells", *SAMPLERS.values())
    for run, name in CELLS.items():
        lines.append(_row(name, *(f"{found[run, 64000, sampler].value:,.0f}" for sampler in SAMPLERS)))
    return lines


def picture(found: dict[tuple[str, int, str], Card]) -> Figure:
    """Distances over images seen: seed 0 as a line, the other seeds as points."""
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    panels = figure.subplots(1, len(SAMPLERS), sharey=True)
    for axes, (sampler, title) in zip(panels, SAMPLERS.items(), strict=True):
        for run, look in LOOK.items():
            line = [found[_long(run, seen), seen, sampler] for seen in LONG]
            values = [card.value for card in line]
            bars = [[card.value - card.low for card in line], [card.high - card.value for card in line]]
            axes.errorbar(LONG, values, yerr=bars, capsize=2, label=f"{run}, seed 0", **look)
            points = [(seen, found[f"{run}-{seed}", seen, sampler].value) for seen in SEEN for seed in SEEDS[1:]]
            axes.plot(
                *zip(*points, strict=True), linestyle="", label="seeds 1, 2", **{**look, "markerfacecolor": "white"}
            )
        floor = found["ddpm-0", SEEN[0], sampler].floor
        axes.axhline(floor or 0.0, color="#595959", linewidth=1, label="real images")
        axes.set(xscale="log", yscale="log", title=title, xlabel="images seen")
        axes.set_xticks(LONG, [f"{seen // 1000}k" for seen in LONG])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Frechet distance (SqueezeNet)")
    panels[0].legend(fontsize=8)
    return figure


def main() -> None:
    """Three tables and a picture."""
    found = cards()
    for lines in (seeds(found), longer(found), cells(found)):
        print("\n".join(lines), end="\n\n")
    picture(found).savefig(ROOT / "docs/sharing-pair.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
