"""Models of diffusers behind nearzero's door: what each is told, and that its answer is its own. Tiny, with random weights."""

import json
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError
from nearzero.interop.imported import from_diffusers
from nearzero.interop.schedule import SCHEDULERS
from nearzero.networks.foreign import ARCHITECTURES

B, TEXT = 2, {"encoder_hidden_states": (5, 12)}
POOLED = {**TEXT, "pooled_projections": (10,)}


def drawn(**shapes):
    """Random conditions of these shapes, one for each example."""
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(B, *shape, generator=generator) for name, shape in shapes.items()}


def unet(**more):
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    small = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 16), "norm_num_groups": 8}
    return diffusers.UNet2DModel(**small, **blocks, attention_head_dim=8, **more)


def conditional(**more):
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    small = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (16, 16), "norm_num_groups": 8}
    return diffusers.UNet2DConditionModel(**small, **blocks, cross_attention_dim=12, attention_head_dim=2, **more)


def sd3():
    width = {
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "caption_projection_dim": 16,
        "pos_embed_max_size": 8,
    }
    return diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, joint_attention_dim=12, pooled_projection_dim=10, **width
    )


def flux(guidance):
    width = {
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "axes_dims_rope": (4, 6, 6),
    }
    return diffusers.FluxTransformer2DModel(
        in_channels=16, joint_attention_dim=12, pooled_projection_dim=10, guidance_embeds=guidance, **width
    )


def pixart(sizes):
    width = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 3, "cross_attention_dim": 24}
    return diffusers.PixArtTransformer2DModel(
        in_channels=4, out_channels=8, sample_size=8, caption_channels=12, use_additional_conditions=sizes, **width
    )


def dit():
    width = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2, "num_embeds_ada_norm": 4}
    return diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, sample_size=8, **width)


def patches(x):
    """Flux's tokens and their places: token (i, j) is the patch x[:, :, 2i:2i+2, 2j:2j+2], its channels first."""
    places = [(i, j) for i in range(x.shape[2] // 2) for j in range(x.shape[3] // 2)]
    tokens = [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1) for i, j in places]
    return torch.stack(tokens, dim=1), torch.tensor([(0.0, i, j) for i, j in places])


def flux_directly(model, x, c, condition):
    """FluxPipeline's tokens and ids around the model's call, which is told sigma."""
    tokens, places = patches(x)
    return {"hidden_states": tokens, "timestep": c / 1000, "img_ids": places, "txt_ids": torch.zeros(5, 3), **condition}


def plain(model, x, c, condition):
    return {"sample": x, "timestep": c, **condition}


def latents(model, x, c, condition):
    return {"hidden_states": x, "timestep": c, **condition}


def sized(names, of):
    """Some conditions in added_cond_kwargs."""
    return lambda model, x, c, condition: {
        **of(model, x, c, {k: v for k, v in condition.items() if k not in names}),
        "added_cond_kwargs": {name: condition.get(name) for name in names},
    }


@dataclass
class Case:
    """A model with its scheduler and pipeline; its x, its conditions, how diffusers calls it, who embeds the timestep, and how often in a call."""

    make: Any
    scheduler: Any
    pipeline: str
    shape: tuple
    condition: dict
    call: Any
    embeds: dict
    learned_sigma: bool = False

    def model(self):
        torch.manual_seed(0)
        return self.make().eval()

    def __call__(self):
        return from_diffusers((self.model(), self.scheduler()))

    def x(self):
        return torch.randn(B, *self.shape, generator=torch.Generator().manual_seed(2))


LABELS = {"class_labels": torch.tensor([1, 3])}
XL = {
    **drawn(encoder_hidden_states=(5, 12), text_embeds=(10,)),
    "time_ids": torch.tensor([[64.0, 16, 0, 0, 50, 37]] * B),
}
SIZES = {"resolution": torch.tensor([[32.0, 64.0]] * B), "aspect_ratio": torch.tensor([[37.0]] * B)}
GUIDANCE = {"guidance": torch.tensor([0.037, 0.05])}  # times 1000 it lies among the shared timesteps
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
XL_UNET = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 58,
}
DDIM, PNDM, EULER = diffusers.DDIMScheduler, diffusers.PNDMScheduler, diffusers.EulerDiscreteScheduler
FLOW = diffusers.FlowMatchEulerDiscreteScheduler
IMAGE, LATENT = (3, 8, 8), (4, 8, 8)
UNET, SD3_AT, PIXART_AT = {"time_proj": 1}, {"time_text_embed.time_proj": 1}, {"adaln_single.emb.time_proj": 1}
DIT_AT = {"transformer_blocks.0.norm1.emb.time_proj": 2, "transformer_blocks.1.norm1.emb.time_proj": 1}
CASES = {
    "ddpm": Case(unet, diffusers.DDPMScheduler, "DDPMPipeline", IMAGE, {}, plain, UNET),
    "classes": Case(lambda: unet(num_class_embeds=4), DDIM, "DDIMPipeline", IMAGE, LABELS, plain, UNET),
    "sd15": Case(
        conditional,
        lambda: PNDM(**SD, skip_prk_steps=True, steps_offset=1),
        "StableDiffusionPipeline",
        LATENT,
        drawn(**TEXT),
        plain,
        UNET,
    ),
    "sdxl": Case(
        lambda: conditional(**XL_UNET),
        lambda: EULER(**SD),
        "StableDiffusionXLPipeline",
        LATENT,
        XL,
        sized(("text_embeds", "time_ids"), plain),
        UNET,
    ),
    "sd3": Case(sd3, lambda: FLOW(shift=3.0), "StableDiffusion3Pipeline", LATENT, drawn(**POOLED), latents, SD3_AT),
    "flux": Case(
        lambda: flux(True),
        lambda: FLOW(use_dynamic_shifting=True),
        "FluxPipeline",
        LATENT,
        {**drawn(**POOLED), **GUIDANCE},
        flux_directly,
        {"time_text_embed": 1},
    ),
    "schnell": Case(
        lambda: flux(False), FLOW, "FluxPipeline", LATENT, drawn(**POOLED), flux_directly, {"time_text_embed": 1}
    ),
    "pixart": Case(
        lambda: pixart(True),
        lambda: diffusers.DPMSolverMultistepScheduler(),
        "PixArtAlphaPipeline",
        LATENT,
        {**drawn(**TEXT), **SIZES},
        sized(("resolution", "aspect_ratio"), latents),
        PIXART_AT,
        learned_sigma=True,
    ),
    "pixart-sigma": Case(
        lambda: pixart(False),
        lambda: diffusers.DPMSolverMultistepScheduler(),
        "PixArtSigmaPipeline",
        LATENT,
        drawn(**TEXT),
        sized(("resolution", "aspect_ratio"), latents),
        PIXART_AT,
        learned_sigma=True,
    ),
    "dit": Case(dit, DDIM, "DiTPipeline", LATENT, LABELS, latents, DIT_AT, learned_sigma=True),
}
every = pytest.mark.parametrize("name", CASES)


def test_every_architecture_is_tried():
    """The table of architectures and the cases of these tests hold the same classes."""
    assert {type(case.model()).__name__ for case in CASES.values()} == ARCHITECTURES.keys()


@every
def test_one_answer_is_the_models_own(name):
    """F of the Denoiser at a node equals, bit for bit, what diffusers' model answers to the timestep that its pipeline would tell."""
    case = CASES[name]
    denoiser, x = case(), case.x()
    flow = isinstance(denoiser.process, nz.StraightPath)
    c, t = (torch.full((B,), 380.0), 0.38) if flow else (torch.full((B,), 379, dtype=torch.int64), 0.38)
    with torch.no_grad():
        expected = denoiser.model(**case.call(denoiser.model, x, c, case.condition)).sample
        found, _, _ = denoiser.output(x, t, **case.condition)
    if case.pipeline == "FluxPipeline":
        found, _ = patches(found)
    if case.learned_sigma:
        expected, _ = expected.chunk(2, dim=1)
    assert torch.equal(found, expected) and found.abs().max() > 0


@every
def test_a_folder_gives_the_same_denoiser(name, tmp_path):
    """A pipeline's folder, of which text encoders and VAE are not even there, gives the axes and the answers of the pair."""
    case = CASES[name]
    write(tmp_path, case)
    one, other = case(), from_diffusers(tmp_path)
    for axis in ("process", "parameterization", "conditioning"):
        assert getattr(one, axis) == getattr(other, axis)
    assert one.schedule.config == other.schedule.config and not other.model.training
    with torch.no_grad():
        a, b = (which(case.x(), 0.4, **case.condition) for which in (one, other))
    assert torch.equal(a.x0, b.x0)


def write(folder, case):
    """A pipeline's folder as save_pretrained writes it, without the components that need transformers."""
    model, scheduler = case.model(), case.scheduler()
    part = "transformer" if type(model).__name__.endswith("Transformer2DModel") else "unet"
    model.save_pretrained(folder / part)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": case.pipeline,
        "_diffusers_version": diffusers.__version__,
        "vae": ["diffusers", "AutoencoderKL"],
    }
    entries = {part: ["diffusers", type(model).__name__], "scheduler": ["diffusers", type(scheduler).__name__]}
    (folder / "model_index.json").write_text(json.dumps({**index, **entries}), encoding="utf-8")
    return folder / part


@every
def test_every_model_is_sampled_and_diagnosed(name):
    """Four steps on the scheduler's own grid, or a trailing one where it has none, depend on their seed alone; K is positive without sharing."""
    case = CASES[name]
    denoiser = case()
    if name.startswith("pixart"):  # DPM-Solver++ with linspace spacing
        with pytest.raises(ArgumentError, match="spaces one timestep more"):
            denoiser.grid(case.shape)
        grid = nz.TimestepGrid("trailing")
    else:
        grid = denoiser.grid(case.shape)
    options = {"solver": nz.DDIM(), "grid": grid, "steps": 4, "condition": case.condition}
    found = nz.sample(denoiser, case.shape, seeds=[5, 6], **options)
    assert found.shape == (B, *case.shape)
    one = {key: value[1:] for key, value in case.condition.items()}
    assert torch.allclose(
        found[1:], nz.sample(denoiser, case.shape, seeds=[6], **{**options, "condition": one}), atol=1e-4
    )
    times = torch.tensor([0.005, 0.006, 0.03, 0.3], dtype=torch.float64)
    curve = nz.lipschitz(denoiser, case.x(), times=times, condition=case.condition)
    assert bool((curve.value > 0).all())


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers, with NumPy 2
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_is_one_of_diffusers(scheduler):
    """The closed list names classes of diffusers, whose own defaults are read: their alphas to a relative 1e-6, or sigma, where they have them."""
    try:
        made = getattr(diffusers, scheduler)()
    except ImportError:
        pytest.skip("diffusers makes it only with scipy or torchsde")
    model = unet(time_embedding_type="fourier") if "ScoreSde" in scheduler else unet()
    denoiser = from_diffusers((model, made))
    assert denoiser.schedule.name == scheduler
    if hasattr(made, "alphas_cumprod"):
        alpha = denoiser.process(torch.arange(1, 1001, dtype=torch.float64) / 1000).alpha
        torch.testing.assert_close((alpha**2).float(), made.alphas_cumprod, rtol=1e-6 * 10, atol=0)


@every
def test_a_condition_that_is_missing_or_unknown_is_named(name):
    """What the model needs and is not told, or is told and cannot hear, is named before the model runs."""
    case = CASES[name]
    denoiser = case()
    for absent in set(case.condition) - {"encoder_attention_mask"}:
        rest = {key: value for key, value in case.condition.items() if key != absent}
        with pytest.raises(ArgumentError, match=f"must be told {absent}"):
            denoiser(case.x(), 0.5, **rest)
    with pytest.raises(ArgumentError, match="cannot be told label; it takes"):
        denoiser(case.x(), 0.5, **case.condition, label=torch.zeros(B))


def test_half_precision_holds_the_model_and_not_the_timestep():
    """A bfloat16 model is asked in bfloat16 with exact timesteps and answers in float32; an x in bfloat16, which would tell 1000 for 999, is refused."""
    case = CASES["ddpm"]
    model = case.model().to(torch.bfloat16)
    denoiser = from_diffusers((model, case.scheduler()))
    with torch.no_grad():
        found, _, _ = denoiser.output(case.x(), 1.0)
        expected = model(case.x().to(torch.bfloat16), 999).sample
    assert found.dtype == torch.float32 and torch.equal(found, expected.float())
    with pytest.raises(ArgumentError, match="rounded, 999 to 1000; keep x in float32"):
        denoiser(case.x().to(torch.bfloat16), 1.0)


def test_flux_needs_an_even_size():
    """Flux's patches of 2 x 2 do not cover an odd latent."""
    case = CASES["flux"]
    with pytest.raises(ArgumentError, match="even size"):
        case()(case.x()[..., :7], 0.5, **case.condition)
