"""Recipes through JSON: a closed registry of frozen dataclasses."""

import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nearzero as nz
from nearzero import recipes, registry
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.process.discrete import CosineBetas, LinearBetas, ListedBetas, QuadraticBetas
from nearzero.registry import decode, encode

law = settings(deadline=None, derandomize=True, max_examples=60)
AXES = {
    "process",
    "parameterization",
    "conditioning",
    "times",
    "weighting",
    "grid",
    "solvers",
    "codec",
    "rescaled",
    "ema",
}
OBJECTS = [
    *(nz.EMA(), nz.EMA(0.99, 1.0), nz.HalfLife(), nz.HalfLife(1e6, None), nz.Power(), nz.Power(0.1)),
    *(nz.LinearVP(), nz.LinearVP(0.2, 15.0), nz.DiscreteVP.linear(), nz.DiscreteVP.linear(10, 1e-3, 0.5)),
    *(nz.DiscreteVP.from_betas([0.1, 1 / 3, 0.7]), LinearBetas(7, 0.1, 0.2), ListedBetas((0.1, 0.2))),
    *(nz.DiscreteVP.quadratic(), nz.DiscreteVP.cosine(50, 0.01, 0.9), QuadraticBetas(), CosineBetas()),
    *(nz.QuadraticVP(), nz.CosineVP(), nz.ShiftedCosine(2.0), nz.LinearSigmaVP(), nz.SubVP(), nz.StraightPath()),
    *(nz.SongVE(), nz.KarrasVE(10.0), nz.ZeroTerminalSNR(nz.LinearVP()), nz.ZeroTerminalSNR(nz.DiscreteVP.cosine())),
    *(nz.Denoised(), nz.Flow(), nz.Karras(0.3), nz.Nu(), nz.W(), nz.LogSigma(), nz.LogSNR(), nz.InverseTime()),
    *(
        nz.InverseSigmoid(),
        nz.Shared(nz.LogSigma(), interval=0.3, cells=4),
        nz.Shared(nz.LogSNR(), interval=1, cells=2),
    ),
    *(nz.LogNormalSigma(), nz.ImportanceTimes(), nz.SoftTruncation(1e-4, 1.2), nz.Stratified(nz.UniformTimes())),
    *(nz.Antithetic(nz.Stratified(nz.DiscreteTimes())), nz.MinSNR(), nz.P2(1.0, 0.5), nz.LikelihoodWeight()),
    nz.Above(nz.MinSNR(), 0.35),
    *(nz.Euler(), nz.Heun(), nz.KarrasGrid(), nz.LogSNRGrid(1e-4), nz.AngleGrid()),
    *(nz.Centred((0.1,)), nz.Centred((0.1, -1 / 3, 0.2))),
    *(nz.Epsilon(), nz.Velocity(), nz.Time(), nz.Time(0.1 + 0.2), nz.Timestep(), nz.Timestep(250)),
    *(nz.Shared(nz.Timestep(1000), interval=100, cells=5), nz.Shared(nz.Time(1000.0), interval=0.1, cells=7)),
    *(nz.UniformTimes(), nz.DiscreteTimes(), nz.Simple(), nz.UniformGrid(), nz.SqrtGrid()),
    *(nz.TimestepGrid(), nz.TimestepGrid("leading"), nz.TimestepGrid("linspace")),
    *(nz.Matched(nz.UniformTimes(), nz.LinearVP()), nz.UniformTold(nz.InverseTime()), nz.Through(nz.KarrasVE())),
    *(nz.UniformTold(nz.InverseSigmoid(), 0.1, 0.9), nz.QuantileGrid(nz.LogNormalSigma()), nz.Centred()),
    *(nz.Angle(nz.LinearVP()), nz.Itself(nz.SubVP()), nz.NoiseLevel(nz.SongVE()), nz.Heun(nz.Itself(nz.KarrasVE()))),
    *(nz.Through(nz.SongVE(), nearest=True), nz.Matched(nz.Stratified(nz.DiscreteTimes()), nz.DiscreteVP.linear())),
    *(nz.DDIM(), nz.DDIM(0.3), nz.Ancestral(), nz.Ancestral("lower"), nz.Pixels()),
    *(nz.EulerMaruyama(), nz.EulerMaruyama(denoise=False), nz.ReverseDiffusion(), nz.PredictorCorrector()),
    *(nz.PredictorCorrector(nz.Ancestral("lower"), 2, 0.1), nz.Churn(30.0), nz.Churn.imagenet64()),
    *(nz.FullDiffusionSolver(), nz.FullDiffusionSolver(2, "bridge"), nz.FullDiffusionSolver(2, "fitted")),
    *(nz.DPMSolver(), nz.DPMSolver(2), nz.DPMSolverPP(), nz.DPMSolverPP(1, noise=True)),
    *(nz.LogTimes(), nz.LogTimes(0.1), nz.Stratified(nz.LogTimes())),
    *(nz.RungeKutta2(), nz.RungeKutta2(2 / 3), nz.RungeKutta4(), nz.RK45(), nz.RK45(1e-3, 1e-4)),
    *(nz.RungeKutta4(nz.Angle(nz.LinearVP())), nz.RK45(clock=nz.Itself(nz.KarrasVE()))),
    *(nz.TimestepGrid("quadratic"), nz.Aligned(nz.SqrtGrid(), (0.02, 0.1)), nz.Aligned(nz.TimestepGrid(), ())),
]


@pytest.fixture
def guests(monkeypatch):
    """Classes registered by a test leave with it."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))


def through_json(value):
    return decode(json.loads(json.dumps(encode(value), allow_nan=False)))


@pytest.mark.parametrize("value", OBJECTS, ids=repr)
def test_every_axis_object_survives_json(value):
    """decode(encode(x)) == x and has x's class, through text too."""
    for copy in (decode(encode(value)), through_json(value)):
        assert copy == value
        assert type(copy) is type(value)
        assert repr(copy) == repr(value)


def test_every_registered_axis_class_is_tried():
    """The list above leaves out no class that an axis registers."""
    known = {cls for cls in registry._CLASSES.values() if (cls.__module__ + ".").split(".")[1] in AXES}
    assert known == {type(value) for value in OBJECTS}


def test_what_is_read_behaves_as_what_was_written():
    """A process and a conditioning that went through JSON answer the same bits."""
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    process = nz.DiscreteVP.from_betas([0.1, 1 / 3, 0.7])
    assert torch.equal(through_json(process)(t).sigma, process(t).sigma)
    shared = nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    assert torch.equal(through_json(shared)(t, None), shared(t, None))


@law
@given(st.lists(st.floats(0, 1, exclude_min=True, exclude_max=True), min_size=1, max_size=10))
def test_floats_survive_bit_by_bit(betas):
    """Betas of any value in (0, 1) come back bit by bit."""
    assert through_json(nz.DiscreteVP.from_betas(betas)).betas.betas == tuple(betas)


def test_what_is_written():
    """An object is a flat dict of its class name and fields, nested for nested objects: readable and stable."""
    assert encode(nz.Shared(nz.Timestep(1000), interval=100, cells=5)) == {
        "class": "Shared",
        "inner": {"class": "Timestep", "steps": 1000},
        "interval": 100,
        "cells": 5,
    }
    assert encode(nz.DiscreteVP.from_betas([0.25, 0.5])) == {
        "class": "DiscreteVP",
        "betas": {"class": "ListedBetas", "betas": [0.25, 0.5]},
    }


def test_an_unknown_class_is_corrected():
    """A class that nobody registered is refused with the nearest name, and the exit code is 4."""
    with pytest.raises(CheckpointError, match="unknown class 'DDIMM'.*did you mean 'DDIM'") as raised:
        decode({"class": "DDIMM", "eta": 0.0})
    assert raised.value.exit_code == 4


def test_an_unknown_field_is_corrected():
    """A field that a class lacks is refused with the class and the nearest field."""
    with pytest.raises(CheckpointError, match="unknown field 'etta' of DDIM.*did you mean 'eta'"):
        decode({"class": "DDIM", "etta": 0.0})


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "nearzero.solvers.DDIM", "", None, 3, ["DDIM"]])
def test_a_file_names_no_import(name):
    """An import path, even of a registered class, and anything that is no name are unknown classes."""
    with pytest.raises(CheckpointError, match="unknown class"):
        decode({"class": name, "command": "true"})


def test_a_dict_without_a_class_is_refused():
    """A dict stands for an object and needs a class."""
    with pytest.raises(CheckpointError, match="unknown class None"):
        decode({"eta": 0.0})


SHARED = {"class": "Shared", "inner": {"class": "Timestep", "steps": 1000}, "interval": 100, "cells": 5}


@pytest.mark.parametrize(
    "bad",
    [
        {"class": "DDIM", "eta": 2.0},
        {"class": "DDIM", "eta": "x"},
        {"class": "DDIM", "eta": None},
        {"class": "DDIM", "eta": math.nan},
        {"class": "LinearVP", "beta_min": "x"},
        {"class": "Time", "scale": math.inf},
        {"class": "Ancestral", "variance": {"class": "Epsilon"}},
        {"class": "TimestepGrid", "spacing": ["trailing"]},
        {"class": "Timestep", "steps": 2.5},
        {"class": "DiscreteVP"},
        {"class": "DiscreteVP", "betas": 3},
        {"class": "DiscreteVP", "betas": [0.1, 0.2]},
        {"class": "DiscreteVP", "betas": {"class": "Epsilon"}},
        {"class": "DiscreteVP", "betas": {"class": "ListedBetas", "betas": []}},
        {"class": "DiscreteVP", "betas": {"class": "ListedBetas", "betas": ["x"]}},
        {"class": "DiscreteVP", "betas": {"class": "ListedBetas", "betas": [[0.1, 0.2], [0.3]]}},
        {"class": "DiscreteVP", "betas": {"class": "LinearBetas", "steps": 0}},
        {"class": "DiscreteVP", "betas": {"class": "LinearBetas", "steps": -1}},
        {"class": "LinearBetas", "start": "x"},
        SHARED | {"cells": 3},
        SHARED | {"cells": 5.0},
        SHARED | {"interval": None},
        SHARED | {"inner": 3},
        SHARED | {"inner": {"class": "Epsilon"}},
    ],
    ids=json.dumps,
)
def test_bad_values_are_checkpoint_errors(bad):
    """A value that its class refuses makes a CheckpointError which names the class, whatever refused it."""
    with pytest.raises(CheckpointError, match=f"bad {bad['class']}"):
        decode(bad)


def test_a_bad_value_deep_inside_is_named():
    """The class that is bad is named, not the one around it."""
    with pytest.raises(CheckpointError, match="bad Timestep.*0"):
        decode(SHARED | {"inner": {"class": "Timestep", "steps": 0}})


def test_a_users_class_joins(guests):
    """A frozen dataclass that is registered can be saved, also around the library's own objects."""

    @nz.register
    @dataclass(frozen=True)
    class Doubled:
        inner: object
        factor: float = 2.0

    value = Doubled(nz.Shared(nz.Timestep(1000), interval=100, cells=5), factor=3.0)
    assert through_json(value) == value
    assert encode(value)["class"] == "Doubled"


def test_only_registered_classes_are_saved(guests):
    """A class that is not registered is refused by name, even with a registered class's name."""

    @dataclass(frozen=True)
    class Stranger:
        factor: float = 2.0

    with pytest.raises(ArgumentError, match="Stranger cannot be saved.*register"):
        encode(Stranger())
    impostor = dataclasses.make_dataclass("DDIM", [("eta", float)], frozen=True)
    with pytest.raises(ArgumentError, match="DDIM cannot be saved"):
        encode(impostor(0.0))
    with pytest.raises(ArgumentError, match="dict cannot be saved"):
        encode({"eta": 0.0})


@pytest.mark.parametrize("frozen", [False, None])
def test_only_frozen_dataclasses_join(guests, frozen):
    """A class that is no dataclass, or a dataclass that can change, is refused with the remedy."""

    class Plain:
        pass

    cls = Plain if frozen is None else dataclasses.make_dataclass("Plain", [], frozen=False)
    with pytest.raises(ArgumentError, match=r"register\(Plain\).*frozen=True"):
        nz.register(cls)
    assert "Plain" not in registry._CLASSES


def test_a_name_is_not_stolen(guests):
    """A second class of a registered name is refused, and the first stays; registering the same class again is harmless."""
    thief = dataclasses.make_dataclass("DDIM", [("eta", float)], frozen=True, namespace={"__module__": "elsewhere"})
    with pytest.raises(ArgumentError, match=r"register\(DDIM\).*nearzero.solvers"):
        nz.register(thief)
    assert decode({"class": "DDIM"}) == nz.DDIM()
    assert nz.register(nz.DDIM) is nz.DDIM


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_only_finite_numbers_are_saved(guests, value):
    """JSON has no NaN and no infinity: refused by value, also inside objects and tuples."""

    @nz.register
    @dataclass(frozen=True)
    class Number:
        value: object

    for wrapped in (value, [1.0, value], Number(value), Number((value,))):
        with pytest.raises(ArgumentError, match=f"{value} cannot be saved"):
            encode(wrapped)


def test_a_new_process_that_reads_a_run_knows_every_recipe():
    """`nearzero.run` alone brings every class that a recipe may name: what one process saves another opens, without importing the recipes."""
    saved = json.dumps([encode(make()) for make in recipes.RECIPES.values()])
    code = "import json, sys, nearzero.run as r; print(len([r.decode(one) for one in json.load(sys.stdin)]))"
    done = subprocess.run([sys.executable, "-c", code], input=saved, capture_output=True, text=True)
    assert done.stdout == f"{len(recipes.RECIPES)}\n", done.stderr[-500:]
