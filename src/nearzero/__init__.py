"""nearzero: diffusion models that behave at t = 0.

`import nearzero as nz` imports no torch: each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "errors": ["NearzeroError"],
    "registry": ["register"],
    "level": ["Level", "Estimate"],
    "process.base": ["Angle", "Itself", "NoiseLevel"],
    "process.discrete": ["DiscreteVP", "ZeroTerminalSNR"],
    "process.plain": ["KarrasVE", "SongVE", "StraightPath", "SubVP"],
    "process.vp": ["CosineVP", "LinearSigmaVP", "LinearVP", "QuadraticVP", "ShiftedCosine"],
    "parameterization": ["Denoised", "Epsilon", "Flow", "Karras", "Nu", "Velocity", "W"],
    "conditioning.noise": ["LogSNR", "LogSigma"],
    "conditioning.shared": ["Shared"],
    "conditioning.time": ["InverseSigmoid", "InverseTime", "Time", "Timestep"],
    "times": [
        *("Antithetic", "DiscreteTimes", "ImportanceTimes", "LogNormalSigma", "LogTimes"),
        *("Matched", "SoftTruncation", "Stratified", "UniformTimes", "UniformTold"),
    ],
    "weighting": ["Above", "LikelihoodWeight", "MinSNR", "P2", "Simple"],
    "solvers.churn": ["Churn"],
    "solvers.exponential": ["DDIM", "DPMSolver", "DPMSolverPP"],
    "solvers.full": ["FullDiffusionSolver"],
    "solvers.adaptive": ["RK45"],
    "solvers.ode": ["Euler", "Heun", "RungeKutta2", "RungeKutta4"],
    "solvers.sde": ["Ancestral", "EulerMaruyama", "PredictorCorrector", "ReverseDiffusion"],
    "grid": [
        "Aligned",
        "AngleGrid",
        "KarrasGrid",
        "LogSNRGrid",
        "QuantileGrid",
        "SqrtGrid",
        "TimestepGrid",
        "UniformGrid",
    ],
    "shifted": ["OffsetGrid", "ShiftedGrid"],
    "denoiser": ["Denoiser"],
    "rescaled": ["Rescaled", "Through"],
    "oracle.mixture": ["GaussianMixture"],
    "oracle.points": ["PointCloud"],
    "codec": ["Centred", "Pixels"],
    "objective": ["LearnedUncertainty", "LipschitzPenalty", "Regression", "VariationalBound"],
    "bounds": ["truncated_elbo"],
    "guidance": ["Guided"],
    "inversion": ["invert"],
    "likelihood": ["Likelihood", "bits_per_dim", "elbo", "log_likelihood", "ode_likelihood"],
    "sampling": ["State", "sample", "trajectory"],
    "diagnostics.lipschitz": ["LipschitzCurve", "lipschitz"],
    "diagnostics.perturbation": ["Perturbation", "perturbation"],
    "diagnostics.noise_levels": ["NoiseLevels", "loss_by_noise"],
    "diagnostics.theory": ["schedule_exponent", "target_exponent", "theorem_bound"],
    "diagnostics.diagnosis": ["Diagnosis", "diagnose"],
    "networks.unet": ["UNet"],
    "data.images": ["Images", "embedded"],
    "data": ["read_images"],
    "data.folder": ["read_folder"],
    "metrics.energy": ["Distance", "energy_distance"],
    "metrics.frechet": ["Statistics", "frechet_distance"],
    "metrics.bootstrap": ["frechet_interval"],
    "metrics.extractors": ["ModuleExtractor"],
    "metrics.kid": ["kid"],
    "metrics.precision_recall": ["PrecisionRecall", "precision_recall"],
    "metrics.similarity": ["psnr", "ssim"],
    "metrics.spectrum": ["spectrum_distance"],
    "production": ["Production", "produce"],
    "cards": ["Card", "check_alike", "read_card"],
    "yardstick": ["Reference"],
    "quality": ["measure"],
    "ema": ["EMA", "HalfLife", "Power"],
    "recipe": ["Recipe"],
    "manifest": ["Keep"],
    "run": ["Run"],
    "posthoc": ["reconstruct"],
    "training.engine": ["Engine"],
    "training.guards": ["Guard"],
    "training.loop": ["train"],
    "interop.imported": ["from_diffusers"],
    "interop.sharing": ["share_timesteps", "unshare"],
    "interop.export": ["to_diffusers"],
    "interop.finetune": ["finetune"],
}
_DIFFUSERS = ["ModelMixin", "SchedulerMixin", "NearzeroModel", "NearzeroPipeline"]
"""What diffusers looks up in a package that model_index.json names, besides Shared<its own class>."""
_HOME = {name: module for module, names in _NAMES.items() for name in names}
_MODULES = ["errors", "recipes", "zoo"]

__all__ = ["__version__", *_HOME, *_MODULES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"nearzero.{_HOME[name]}"), name)
    if name in _DIFFUSERS or (name.startswith("Shared") and name.endswith("Model")):
        return getattr(importlib.import_module("nearzero.interop.exported"), name)
    if name in _MODULES:
        return importlib.import_module(f"nearzero.{name}")
    raise AttributeError(f"module 'nearzero' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
