"""At which times the network is trained, and how much each counts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero import randomness
from nearzero.errors import ArgumentError
from nearzero.level import Coefficients

law = settings(deadline=None, derandomize=True, max_examples=60)
LARGEST, SMALLEST = 0xFFFFFFFF, 0


def extreme(monkeypatch, word):
    """The uniform number that randomness makes of four equal extreme words."""
    monkeypatch.setattr(
        randomness, "words", lambda seed, stream, index, count: (torch.full((len(index), count), word),) * 4
    )
    return randomness.uniform(0, randomness.Stream.TIME, torch.zeros(1, dtype=torch.int64))


@law
@given(u=st.floats(0, 1, exclude_min=True, exclude_max=True), end=st.floats(0.1, 100))
def test_uniform_times_are_a_share_of_the_end(u, end):
    """t = u end: the inverse distribution function of the uniform distribution on (0, end)."""
    process = type("Process", (), {"end": end})()
    assert nz.UniformTimes()(torch.tensor([u], dtype=torch.float64), process).item() == pytest.approx(
        u * end, rel=1e-15
    )


@pytest.mark.parametrize("steps", [1, 3, 10, 1000])
def test_discrete_times_hit_every_node_equally(steps):
    """On a grid of 12 u to a node, each node (k + 1) / steps is hit exactly 12 times, in order."""
    u = (torch.arange(12 * steps, dtype=torch.float64) + 0.5) / (12 * steps)
    expected = [(k + 1) / steps for k in range(steps) for _ in range(12)]
    assert nz.DiscreteTimes()(u, nz.DiscreteVP.linear(steps=steps)).tolist() == expected


@law
@given(steps=st.integers(1, 5000), u=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_discrete_times_are_nodes(steps, u):
    """For every u in (0, 1), the largest float below 1 included, t is (k + 1) / steps for a k in 0 .. steps-1."""
    process = type("Process", (), {"steps": steps, "end": 1.0})()
    for number in (u, math.nextafter(1.0, 0.0), math.nextafter(0.0, 1.0)):
        k = min(math.floor(number * steps), steps - 1)
        assert nz.DiscreteTimes()(torch.tensor([number], dtype=torch.float64), process).item() == (k + 1) / steps


@pytest.mark.parametrize("word", [SMALLEST, LARGEST])
def test_extreme_draws_are_legal_times(monkeypatch, word):
    """The smallest and largest u that training can draw give the first and last node, and times inside (0, end)."""
    u = extreme(monkeypatch, word)
    process = nz.DiscreteVP.linear()
    assert nz.DiscreteTimes()(u, process).item() == (1.0 if word else 0.001)
    t = nz.UniformTimes()(u, process)
    assert 0 < t.item() < process.end
    assert process(t).sigma.item() > 0


def test_discrete_times_refuse_a_continuous_process():
    """A process without nodes has no discrete times: refused by name with a way out."""
    with pytest.raises(ArgumentError, match="LinearVP has no timesteps.*UniformTimes"):
        nz.DiscreteTimes()(torch.tensor([0.5], dtype=torch.float64), nz.LinearVP())


@law
@given(st.floats(0, 1.57), st.floats(-1e6, 1e6))
def test_simple_weighs_every_level_alike(angle, number):
    """Simple is 1 at any level and for any coefficients, one number for each example."""
    level = nz.Level(torch.tensor([math.cos(angle)] * 3), torch.tensor([math.sin(angle)] * 3))
    k = Coefficients(*(torch.full((3,), number) for _ in range(4)))
    assert nz.Simple()(level, k).tolist() == [1.0, 1.0, 1.0]
