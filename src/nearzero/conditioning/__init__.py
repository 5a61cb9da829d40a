"""Axis 3, the conditioning: the number that tells the network how much noise there is.

`Shared` is E-TSDM: every time inside a cell near t = 0 is told one and the same number, so inside a cell the
network cannot change with t at all.
"""

from nearzero.conditioning.base import Conditioning, Divisible
from nearzero.conditioning.noise import LogSigma, LogSNR
from nearzero.conditioning.shared import Shared
from nearzero.conditioning.time import InverseSigmoid, InverseTime, Time, Timestep

__all__ = [
    "Conditioning",
    "Divisible",
    "InverseSigmoid",
    "InverseTime",
    "LogSNR",
    "LogSigma",
    "Shared",
    "Time",
    "Timestep",
]
