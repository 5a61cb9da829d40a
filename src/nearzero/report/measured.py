"""What has been measured of a run: the cards and the likelihoods in its folder, and everything as cards by name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nearzero import zoo
from nearzero.cards import Card, read_card
from nearzero.diagnostics.diagnosis import Diagnosis
from nearzero.errors import CheckpointError, DataError
from nearzero.files import read_json

METHODS = {"ByOde": "nll-ode", "ByBound": "nll-bound", "ByTruncatedBound": "nll-truncated-bound"}
"""What a likelihood is called, by its method's class."""


@dataclass(frozen=True)
class Measured:
    """Cards and documents of likelihoods by the names of their files without .json, and what is wrong with others.

    `curve` holds the cards of quality/cards/, one for each sampler of `nearzero evaluate --pareto`.
    """

    cards: Mapping[str, Card] = field(default_factory=dict)
    curve: Mapping[str, Card] = field(default_factory=dict)
    likelihoods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    damaged: Mapping[str, DataError | CheckpointError] = field(default_factory=dict)

    @property
    def whole(self) -> list[Mapping[str, Any]]:
        """The likelihoods of which no image is left to do."""
        return [one for one in self.likelihoods.values() if one["images_done"] == one["settings"]["images"]]

    @property
    def lacking(self) -> set[str]:
        """Which of "fd" and "nll" is not there, whatever its file is called."""
        return {name for name, found in (("fd", self.cards), ("nll", self.whole)) if not found}

    def check(self) -> Measured:
        """Itself. Raises what is wrong with the first file that was edited or is damaged."""
        for error in self.damaged.values():
            raise error
        return self


def measured(folder: Path) -> Measured:
    """Reads the JSON files of a run's folder and its quality/cards/; what is no card and no likelihood is left out.

    Of a model of the package also those that were measured here; of two with one name they count.
    """
    cards, curve, likelihoods, damaged = {}, {}, {}, {}
    places = dict.fromkeys((folder, zoo.results(folder)))
    for name, path in {name: path for place in places for name, path in _files(place)}.items():
        try:
            record = read_json(path)
            if isinstance(record, dict) and "card" in record:
                (curve if "/" in name else cards)[name] = _checked(path, read_card(path))
            elif _is_likelihood(record):
                likelihoods[name] = record
        except (DataError, CheckpointError) as error:
            damaged[name] = error
    return Measured(cards, curve, likelihoods, damaged)


def steps(found: Measured) -> dict[str, Any]:
    """The training step that each file's number is about."""
    likelihoods = {name: one["settings"].get("step") for name, one in found.likelihoods.items()}
    return {name: card.subject.get("step") for name, card in found.cards.items()} | likelihoods


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    kept = (folder / "quality/cards").glob("*.json")  # by evaluate --pareto
    for path in (*sorted(folder.glob("*.json")), *sorted(kept)):
        yield path.relative_to(folder).with_suffix("").as_posix(), path


def _checked(path: Path, card: Card) -> Card:
    """Raises DataError where a card holds something else than it should: its seal says only that nobody edited it."""
    numbers = [card.value, card.low, card.high, card.stderr, *([] if card.floor is None else [card.floor])]
    parts = (card.protocol, card.subject, card.others, card.made)
    if not all(map(_is_number, numbers)) or not all(isinstance(part, dict) for part in parts):
        raise DataError(f"{path} is no card: its numbers are none; measure again")
    return card


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_likelihood(record: Any) -> bool:
    """Whether a document is what `nearzero.nll.evaluate` writes, as far as it is read here."""
    if not isinstance(record, dict) or not isinstance(record.get("settings"), dict):
        return False
    settings, means = record["settings"], record.get("means")
    method, data = settings.get("method"), settings.get("data")
    bits = means.get("bits") if isinstance(means, dict) else None
    return (
        isinstance(method, dict)
        and method.get("class") in METHODS
        and isinstance(data, dict)
        and isinstance(bits, dict)
        and _is_number(bits.get("mean"))
        and (bits.get("stderr") is None or _is_number(bits["stderr"]))
        and type(record.get("images_done")) is int
        and type(settings.get("images")) is int
    )


def numbers(found: Measured, diagnosis: Diagnosis | None = None, seed: int = 0) -> dict[str, Card]:
    """Every number of a run as a card, by the name that conditions use.

    "fd" is the card of fd.json and "fd.KID" one of its others, "nll-ode" a likelihood by its method, "nll" the same
    where there is one alone, "lipschitz" the largest K near t = 0.
    """
    cards: dict[str, Card] = {}
    for name, card in found.cards.items():
        cards[name] = card
        for other, value in card.others.items():
            if (one := _other(card, other, value)) is not None:
                cards[f"{name}.{other}"] = one
    by_method = {METHODS[one["settings"]["method"]["class"]]: _likelihood(one) for one in found.whole}
    cards |= by_method
    if len(found.whole) == 1:
        cards["nll"] = next(iter(by_method.values()))
    if diagnosis is not None:
        cards["lipschitz"] = _lipschitz(diagnosis, seed)
    return cards


def _other(card: Card, name: str, value: Any) -> Card | None:
    """A further number of a card; None for what is no number."""
    told = value if isinstance(value, dict) else {"value": value}
    value, error, floor = (told.get(part) for part in ("value", "stderr", "floor"))
    if not _is_number(value):
        return None
    one = _card(name, float(value), error if _is_number(error) else None, {**card.protocol, "other": name})
    return replace(one, floor=floor if _is_number(floor) else None)


def _likelihood(document: Mapping[str, Any]) -> Card:
    settings, bits = document["settings"], document["means"]["bits"]
    protocol = {name: settings.get(name) for name in ("method", "images", "repeats", "seed")}
    protocol |= {"count": document["images_done"], "reference": settings["data"].get("fingerprint")}
    return _card("bits per dimension", bits["mean"], bits["stderr"], protocol)


def _lipschitz(one: Diagnosis, seed: int) -> Card:
    summary = one.summary()
    protocol = {"count": one.images, "interval": one.interval, "seed": seed, "timesteps": len(one.told)}
    return _card(f"largest K on [0, {one.interval:g}]", summary["max"], summary["max_stderr"], protocol)


def _card(title: str, value: float, error: float | None, protocol: Mapping[str, Any]) -> Card:
    """A number with the interval of its standard error, unknown and so of no width for one image."""
    known = error if error is not None and math.isfinite(error) else 0.0
    half = 1.96 * known
    return Card(title, value, value - half, value + half, known, None, protocol, {}, {}, {})
