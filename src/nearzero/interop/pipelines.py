"""Which component of which pipeline of diffusers predicts."""

from __future__ import annotations

from typing import Any

from nearzero.errors import CheckpointError

PIPELINES = {
    **dict.fromkeys(("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "LDMPipeline", "ScoreSdeVePipeline"), "unet"),
    **dict.fromkeys(("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"), "unet"),
    **dict.fromkeys(("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"), "unet"),
    **dict.fromkeys(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "transformer"),
    **dict.fromkeys(("FluxPipeline", "FluxImg2ImgPipeline"), "transformer"),
    **dict.fromkeys(("PixArtAlphaPipeline", "PixArtSigmaPipeline", "DiTPipeline"), "transformer"),
}
"""The closed table: class of a pipeline -> the component that predicts."""


def predictor(name: object) -> str:
    """The component of a pipeline that predicts. Raises CheckpointError for an unknown class."""
    if not isinstance(name, str) or name not in PIPELINES:
        raise CheckpointError(f"{name} is no pipeline that nearzero knows; known: {', '.join(PIPELINES)}")
    return PIPELINES[name]


def pipeline_parts(pipeline: Any) -> tuple[Any, Any]:
    """(model, scheduler) of a pipeline of a known class, or of one derived from it."""
    return pipeline.components[predictor_of(pipeline)], pipeline.components["scheduler"]


def predictor_of(pipeline: Any) -> str:
    """The name of the component that predicts. Raises CheckpointError for a pipeline of an unknown class."""
    names = [kind.__name__ for kind in type(pipeline).__mro__ if kind.__module__.startswith("diffusers.")]
    known = (name for name in names if name in PIPELINES)
    return predictor(next(known, type(pipeline).__name__))
