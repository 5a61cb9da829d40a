"""Cards: whole or refused, ranked only within one protocol; the interval of paired differences is Student's."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearzero.cards import Card, check_alike, paired, read_card, student, write_card
from nearzero.errors import ArgumentError, CheckpointError, DataError

PROTOCOL = {"metric": "Frechet distance (x)", "count": 100, "extractor": {"name": "x"}, "reference": {"name": "y"}}


def card(value=2.5, **protocol):
    made = {"argv": ["nearzero"], "created": "now"}
    return Card(
        "Frechet distance (x)", value, 2.0, 3.0, 0.25, 1.0, {**PROTOCOL, **protocol}, {"run": "a"}, {"KID": 0.5}, made
    )


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(value=finite, low=finite, name=st.text(max_size=20))
def test_a_card_comes_back(tmp_path_factory, value, low, name):
    """write, read: the same card, whatever its numbers and texts."""
    path = tmp_path_factory.mktemp("card") / "card.json"
    one = Card("t", value, low, 3.0, 0.25, None, PROTOCOL, {"run": name}, {}, {})
    write_card(path, one)
    assert read_card(path) == one


def leaves(value, place=()):
    if isinstance(value, dict):
        return [leaf for key, one in value.items() for leaf in leaves(one, (*place, key))]
    if isinstance(value, list):
        return [leaf for i, one in enumerate(value) for leaf in leaves(one, (*place, i))]
    return [place]


def test_an_edit_anywhere_is_refused(tmp_path):
    """Every number and text of the file, changed by itself: exit 3."""
    path = tmp_path / "card.json"
    write_card(path, card())
    record = json.loads(path.read_text())
    places = leaves(record["card"])
    assert len(places) > 12
    for place in places:
        edited = json.loads(json.dumps(record))
        inner = edited["card"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = 7.25
        path.write_text(json.dumps(edited))
        with pytest.raises(DataError, match="was edited") as caught:
            read_card(path)
        assert caught.value.exit_code == 3


def test_what_is_no_card_is_refused(tmp_path):
    """Other JSON, no JSON, a card of a later version, none."""
    path = tmp_path / "card.json"
    for text, error, message in [
        ("[]", DataError, "is no card of nearzero's"),
        ("{}", DataError, "is no card of nearzero's"),
        ("{", CheckpointError, "no valid JSON"),
        ('{"sha256": "", "card": {}, "schema_version": 99}', CheckpointError, "upgrade nearzero"),
    ]:
        path.write_text(text)
        with pytest.raises(error, match=message):
            read_card(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        read_card(path)


@pytest.mark.parametrize(
    ("key", "value"), [("count", 99), ("extractor", {"name": "z"}), ("reference", {"name": "z"}), ("metric", "FID")]
)
def test_other_protocols_are_not_ranked(key, value):
    """One line that names what differs, and both values; equal ones pass, in any order of their keys."""
    check_alike({"a": card(), "b": card(3.0, **dict(reversed(PROTOCOL.items())))})
    with pytest.raises(ArgumentError, match=f"a and c were measured with another {key}") as caught:
        check_alike({"a": card(), "b": card(), "c": card(**{key: value})})
    assert json.dumps(value, sort_keys=True) in str(caught.value)


TABLE = {
    1: 12.7062047,
    2: 4.3026527,
    3: 3.1824463,
    4: 2.7764451,
    9: 2.2621572,
    10: 2.2281389,
    29: 2.0452296,
    100: 1.9839715,
}


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_students_quantile(freedom, quantile):
    """The printed tables of the 97.5 % quantile, to their eight digits."""
    assert student(freedom) == pytest.approx(quantile, abs=6e-8)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """Of 4,000 sets of three differences from N(1, 2^2) 95 % +- 1 % of the intervals hold 1: normal quantiles would hold 82 %."""
    draws = 1 + 2 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = [low <= 1 <= high for _, low, high in (paired(row, [0.0] * 3) for row in draws.tolist())]
    assert abs(sum(inside) / len(inside) - 0.95) < 0.01


@given(st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=6))
def test_pairs_turned_around_turn_the_interval_around(pairs):
    """paired(b, a) is minus paired(a, b), ends exchanged; the mean is that of the differences."""
    a, b = zip(*pairs, strict=True)
    mean, low, high = paired(a, b)
    assert paired(b, a) == pytest.approx((-mean, -high, -low), abs=1e-9)
    assert mean == pytest.approx(math.fsum(x - y for x, y in pairs) / len(pairs)) and low <= mean <= high


def test_one_pair_has_no_interval():
    """Nor do lists of unequal length."""
    for a, b in (([1.0], [2.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ArgumentError, match="needs two pairs at least"):
            paired(a, b)
