"""A card, not a number: a distance with everything that it depends on, sealed against edits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.files import read_json, write_json

SCHEMA = 1


@dataclass(frozen=True)
class Card:
    """A measured number. Smaller is better.

    value       the distance, `title` what it is called, such as "Frechet distance (SqueezeNet)"
    low, high   its 95 % interval over the draw of the samples; `stderr` the standard error
    floor       the same distance between as many real images and others of the reference
    protocol    what two cards must share to be ranked: metric, count, extractor (name, preprocessing, weights),
                reference (name, count, fingerprint)
    subject     what was measured: run, recipe, step, images seen, checkpoint, weights, sampler, evaluations, seeds
    others      further numbers of the same images by name, each with its own error where it has one: "KID", "precision"
    made        the command, versions, device and time
    """

    title: str
    value: float
    low: float
    high: float
    stderr: float
    floor: float | None
    protocol: Mapping[str, Any]
    subject: Mapping[str, Any]
    others: Mapping[str, Any]
    made: Mapping[str, Any]

    def text(self) -> str:
        """In a line: the value with its interval, for how many images, and the floor."""
        near = "" if self.floor is None else f"; real images: {plain(self.floor)}"
        value, low, high = (plain(number) for number in (self.value, self.low, self.high))
        return f"{self.title} {value} [{low}, {high}], {self.protocol.get('count'):,} images{near}"


def plain(number: float) -> str:
    """Four digits, and from 1,000 on all that stand before the point: a distance is read, not computed with.

    >>> plain(812.41), plain(11910.3)
    ('812.4', '11,910')
    """
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.4g}"


def write_card(path: Path, card: Card) -> None:
    """Writes a card as JSON with its seal, atomically."""
    content = {"schema_version": SCHEMA, "card": asdict(card)}
    write_json(path, {**content, "sha256": _seal(content)})


def read_card(path: Path) -> Card:
    """Reads a card. Raises DataError where it was edited or is damaged, CheckpointError where it cannot be read."""
    record = read_json(path)
    seal = record.pop("sha256", None) if isinstance(record, dict) else None
    if seal is None or not isinstance(record.get("card"), dict):
        raise DataError(f"{path} is no card of nearzero's; measure again: nearzero evaluate RUN --fd")
    if type(record.get("schema_version")) is not int or record["schema_version"] > SCHEMA:
        raise CheckpointError(f"{path} has schema version {record.get('schema_version')!r:.20}; upgrade nearzero")
    if seal != _seal(record):
        raise DataError(f"{path} was edited: its content has another hash than it says; measure again")
    found = record["card"]
    if found.keys() != {field.name for field in fields(Card)}:
        raise DataError(f"{path} is no card of this nearzero's; measure again")
    return Card(**found)


def check_alike(cards: Mapping[str, Card]) -> None:
    """Raises ArgumentError where cards were measured by different protocols: they cannot be ranked."""
    (name, first), *others = cards.items()
    for other, card in others:
        for key in sorted({**first.protocol, **card.protocol}):
            a, b = (json.dumps(one.protocol.get(key), sort_keys=True) for one in (first, card))
            if a != b:
                raise ArgumentError(
                    f"{name} and {other} were measured with another {key}, {a:.200} and {b:.200}, and cannot be "
                    "ranked; measure both anew in one way"
                )


def paired(values: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Mean of the differences values - others over paired training seeds, and its 95 % interval by Student's t.

    Raises ArgumentError for fewer than two pairs. The quantile of t is exact to 1e-4 relative.

    >>> [round(number, 3) for number in paired([1.0, 2.0, 4.0], [0.0, 2.0, 1.0])]
    [1.333, -2.461, 5.128]
    """
    if len(values) != len(others) or len(values) < 2:
        raise ArgumentError(f"an interval of paired differences needs two pairs at least, got {len(values)}")
    differences = [a - b for a, b in zip(values, others, strict=True)]
    n, mean = len(differences), math.fsum(differences) / len(differences)
    error = math.sqrt(math.fsum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    half = student(n - 1) * error
    return mean, mean - half, mean + half


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with `freedom` degrees of freedom, by bisection of its distribution.

    P(|T| < t) = A(t | nu) in closed form: with theta = atan(t / sqrt(nu)), sums of powers of cos(theta).
    Reference: Abramowitz and Stegun, Handbook of mathematical functions, 1964, 26.7.3 and 26.7.4.

    >>> [round(student(n), 3) for n in (1, 2, 10)]
    [12.706, 4.303, 2.228]
    """
    low, high = 0.0, math.pi / 2
    while high - low > 1e-13:
        theta = (low + high) / 2
        low, high = (theta, high) if _within(theta, freedom) < 0.95 else (low, theta)
    return math.sqrt(freedom) * math.tan(low)


def _within(theta: float, freedom: int) -> float:
    """A(t | nu) at t = sqrt(nu) tan(theta)."""
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = freedom % 2
    term = total = cosine if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    if not odd:
        return sine * total
    return 2 / math.pi * (theta + (sine * total if freedom > 1 else 0.0))


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()
