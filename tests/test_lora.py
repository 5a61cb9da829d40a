"""Fine-tuning a LoRA: only it moves, and the export holds it in its weights. Needs the extra: pip install '.[lora]'."""

from dataclasses import replace

import diffusers
import pytest
import torch

from conftest import pictures
from nearzero.interop.export import to_diffusers
from nearzero.interop.finetune import finetune
from nearzero.interop.imported import from_diffusers
from nearzero.interop.pipeline_run import TRAINING
from nearzero.run import Run
from nearzero.training.loop import train
from test_export import lively
from test_interop_models import unet

pytest.importorskip("peft", reason="the extra lora is not installed")
pytestmark = pytest.mark.slow
FEW = replace(TRAINING, steps=3, batch=4, learning_rate=1e-2)


def test_a_lora_moves_alone_and_is_merged(tmp_path):
    """Every other weight stays, bit for bit; resumed or not, the end is the same; the export has stock weights that answer as the run does."""
    torch.manual_seed(0)
    diffusers.DDPMPipeline(lively(unet()), diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipeline")
    how = {"share": (100, 5), "rank": 2, "seed": 1}
    run = finetune(tmp_path / "pipeline", pictures(12, 8, 3), tmp_path / "run", training=FEW, **how)
    part = finetune(tmp_path / "pipeline", pictures(12, 8, 3), tmp_path / "part", training=replace(FEW, steps=1), **how)
    part = train(Run.load(part.path).with_steps(3).recipe, pictures(12, 8, 3), part.path, seed=1, resume=True)
    before = dict(from_diffusers(tmp_path / "pipeline").asked.named_parameters())
    after = dict(run.denoiser(ema=False).network.named_parameters())
    moved = {name for name in after if "lora" in name}
    assert moved and all(after[name].requires_grad for name in moved)
    for name, weight in after.items():
        if name not in moved:
            assert torch.equal(weight, before[name.replace(".base_layer", "")]) and not weight.requires_grad
        assert torch.equal(weight, dict(part.denoiser(ema=False).network.named_parameters())[name])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    made = to_diffusers(run, tmp_path / "out", ema=False)
    back = from_diffusers(tmp_path / "out")
    assert made.kind == "A" and not any("lora" in name for name in back.state_dict())
    with torch.no_grad():
        a, b, alone = (
            one.output(x, 0.5)[0] for one in (run.denoiser(ema=False), back, from_diffusers(tmp_path / "pipeline"))
        )
    assert (a - b).abs().max() <= 1e-5 * a.abs().max() and (a - alone).abs().max() > 1e-3 * a.abs().max()
