"""Axis 1, the process: how much noise there is at time t."""

from nearzero.process.base import Clock, Process
from nearzero.process.discrete import DiscreteVP, ZeroTerminalSNR
from nearzero.process.plain import KarrasVE, SongVE, StraightPath, SubVP
from nearzero.process.vp import CosineVP, LinearSigmaVP, LinearVP, QuadraticVP, ShiftedCosine

__all__ = [
    "Clock",
    "CosineVP",
    "DiscreteVP",
    "KarrasVE",
    "LinearSigmaVP",
    "LinearVP",
    "Process",
    "QuadraticVP",
    "ShiftedCosine",
    "SongVE",
    "StraightPath",
    "SubVP",
    "ZeroTerminalSNR",
]
