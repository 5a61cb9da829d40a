"""Sharing by a hook: the right module and no other, K exactly 0 inside a cell, the same numbers as Shared, gone without a trace."""

import copy

import diffusers
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.imported import from_diffusers
from nearzero.interop.sharing import Stairs, share_timesteps, unshare
from nearzero.networks.foreign import ARCHITECTURES
from test_interop_models import CASES, FLOW, GUIDANCE, SIZES, XL, Case, plain, unet

PAPER = {"interval": 100, "cells": 5}
FOURIER = Case(
    lambda: unet(time_embedding_type="fourier"),
    lambda: diffusers.ScoreSdeVeScheduler(sigma_max=50.0),
    "ScoreSdeVePipeline",
    (3, 8, 8),
    {},
    plain,
    {"time_proj": 1},
)
LEARNED = Case(
    lambda: unet(time_embedding_type="learned", num_train_timesteps=1000),
    diffusers.DDIMScheduler,
    "DDIMPipeline",
    (3, 8, 8),
    {},
    plain,
    {"time_proj": 1},
)
ALL = {**CASES, "learned": LEARNED}
everyone = pytest.mark.parametrize("name", ALL)


def answer(denoiser, case, t):
    with torch.no_grad():
        return denoiser.output(case.x(), t, **case.condition)[0]


def seen(model, call):
    """(name, first argument) of every module without parts of its own, and of every embedder, in the order of the calls."""
    found, handles = [], []
    for name, module in model.named_modules():
        if not any(True for _ in module.children()) or "mbedder" in name:
            spy = lambda _, arguments, __, name=name: found.append((name, arguments[0].clone()))  # noqa: E731
            handles.append(module.register_forward_hook(spy))
    with torch.no_grad():
        call()
    for handle in handles:
        handle.remove()
    return found


# ---- which module


@everyone
def test_exactly_the_module_that_embeds_the_timestep_is_told(name):
    """Timestep 37 becomes 20 where the timestep is embedded, as often as it is; sizes, guidance, labels and text among 0 .. 100 stay what they were.

    SDXL's sizes, PixArt's aspect ratio and Flux's guidance, times 1000, are 37 too.
    """
    case = ALL[name]
    denoiser = case()
    flow = isinstance(denoiser.process, nz.StraightPath)
    t = 0.037 if flow else 0.038
    call = lambda: answer(denoiser, case, t)  # noqa: E731
    before = seen(denoiser.model, call)
    with share_timesteps(denoiser, **PAPER) as sharing:
        after = seen(denoiser.model, call)
    assert sharing.modules == tuple(case.embeds)
    # the embedder of the time itself, and what comes after it in the network, may differ: the numbers that are told may not
    told = [name for name in dict(denoiser.model.named_modules()) if name.split(".")[-1] in NUMBERS]
    changed = {}
    for (one, a), (other, b) in zip(before, after, strict=True):
        assert one == other
        if one in told and not torch.equal(a, b):
            assert torch.all(a == 37) and torch.all(b == 20)
            changed[one] = changed.get(one, 0) + 1
    hooked = {f"{place}.time_proj" if place == "time_text_embed" else place: n for place, n in case.embeds.items()}
    assert changed == hooked
    inputs = [name for name, _ in before if name in told]
    assert len(inputs) == sum(hooked.values()) + OTHERS.get(name, 0)


NUMBERS = {
    *("time_proj", "add_time_proj", "additional_condition_proj", "class_embedding", "class_embedder"),
    *("text_embedder", "guidance_embedder"),
}
"""Modules whose argument is no feature of x and the time."""
OTHERS = {"classes": 1, "sdxl": 1, "sd3": 1, "flux": 3, "schnell": 1, "pixart": 2, "dit": 3}
"""How many calls of them there are besides those that embed the time."""


def test_the_traps_are_set():
    """Control: the other numbers lie inside the shared interval, where a hook on the wrong module would change them."""
    assert 37.0 in XL["time_ids"] and 37.0 in SIZES["aspect_ratio"]
    assert bool((GUIDANCE["guidance"] * 1000 < 100).all())
    case = CASES["flux"]
    denoiser = case()
    projected = [
        told for name, told in seen(denoiser.model, lambda: answer(denoiser, case, 0.5)) if name.endswith("time_proj")
    ]
    assert [value.round().tolist() for value in projected] == [[500.0, 500.0], [37.0, 50.0]]


def test_a_time_proj_that_embeds_labels_too_is_refused():
    """With class_embed_type "timestep" one module embeds both: sharing would change the labels."""
    model = unet(class_embed_type="timestep")
    with pytest.raises(CheckpointError, match="embeds its class labels with time_proj too"):
        share_timesteps(model, **PAPER)


# ---- what is told


@everyone
def test_the_hook_tells_what_shared_tells(name):
    """At nodes, edges and times between, a hooked model and the Denoiser with Shared as its conditioning answer the same, bit for bit."""
    case = ALL[name]
    denoiser = case()
    flow = isinstance(denoiser.process, nz.StraightPath)
    inner = {"interval": 0.1, "cells": 5} if flow else PAPER
    own = nz.Denoiser(
        denoiser.network, denoiser.process, denoiser.parameterization, nz.Shared(denoiser.conditioning, **inner)
    )
    times = [0.001, 0.019, 0.02, 0.021, 0.05, 0.08, 0.081, 0.1, 0.101, 0.5, 1.0]
    times += [] if name == "learned" else [0.0205, 0.0801, 0.1001, 0.7777]  # between nodes
    expected, alone = [answer(own, case, t) for t in times], [answer(denoiser, case, t) for t in times]
    with share_timesteps(denoiser, **PAPER) as sharing:
        found = [answer(denoiser, case, t) for t in times]
    assert sharing.conditioning == own.conditioning
    assert all(map(torch.equal, found, expected))
    same = [torch.equal(a, b) for a, b in zip(found, alone, strict=True)]
    # told its own number: timesteps 0, 20, .. and 80 of DDPM's, and all above the interval
    kept = {t for t in times if t > 0.1} | (set() if flow else {0.001, 0.021, 0.081})
    assert {t for t, equal in zip(times, same, strict=True) if equal} == kept


def test_at_time_zero_the_first_cell_is_told():
    """t = 0, which DDPM's timestep calls -1, and flow matching's sigma = 0 are told the first cell's number."""
    for name in ("ddpm", "sd3"):
        case = CASES[name]
        denoiser = case()
        with share_timesteps(denoiser, **PAPER):
            assert torch.equal(
                denoiser.network(case.x(), torch.full((2,), 0.0), **case.condition), answer_at_zero(denoiser, case)
            )


def answer_at_zero(denoiser, case):
    with torch.no_grad():
        told = denoiser.conditioning(torch.zeros(2), None)
        return denoiser.network(case.x(), told, **case.condition)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float64, torch.bfloat16])
def test_the_stairs_of_ddpms_timesteps(dtype):
    """For all timesteps of every kind of number: k // 20 * 20 below 100 and k from there on, in its own dtype."""
    stairs = Stairs(nz.Shared(nz.Timestep(1000), **PAPER), fourier=False, end=100.0)
    k = torch.arange(256 if dtype == torch.bfloat16 else 1000)
    told = stairs.share(k.to(dtype))
    assert told.dtype == dtype and torch.equal(told.long(), torch.where(k < 100, k // 20 * 20, k))
    assert stairs.share(torch.tensor(37)).item() == 20  # of any shape, also one that is not contiguous
    assert stairs.share(torch.tensor([37]).expand(3)).tolist() == [20, 20, 20]
    assert stairs.share(torch.tensor([37.0, torch.nan, torch.inf])).isfinite().tolist() == [True, False, False]


@pytest.mark.parametrize(("interval", "cells"), [(100, 5), (70, 7), (250, 3), (1000, 8)])
def test_the_stairs_of_flow_matching(interval, cells):
    """For every float32 number of sigma * 1000: in (j w, (j + 1) w] it is j w, w = interval / cells, and itself above the interval."""
    shared = nz.Shared(nz.Time(1000.0), interval=interval / 1000, cells=cells)
    stairs = Stairs(shared, fourier=False, end=float(interval))
    w = interval / cells
    edges = torch.tensor([w * j for j in range(1, cells + 1)], dtype=torch.float64).float()
    c = torch.cat([edges, edges.nextafter(torch.tensor(0.0)), edges.nextafter(torch.tensor(1e9)), torch.arange(1001.0)])
    cell = (c[:, None] > edges).sum(1)
    expected = torch.where(cell < cells, (cell.double() * w).float(), c)
    torch.testing.assert_close(stairs.share(c), expected, rtol=1e-6, atol=0)


def test_a_fourier_model_is_shared_in_sigma_and_keeps_its_scale():
    """Where the argument also divides the output, the embedding alone is shared: eps is that of Shared(LogSigma) to a relative 1e-4."""
    denoiser = FOURIER()
    own = nz.Denoiser(
        denoiser.network, denoiser.process, nz.Epsilon(), nz.Shared(nz.LogSigma(1.0), interval=2.0, cells=4)
    )
    times = (0.01, 0.4, 0.5, 0.7, 1.0, 1.9, 2.0, 2.1, 30.0)
    before, expected = ({t: answer(one, FOURIER, t) for t in times} for one in (denoiser, own))
    with share_timesteps(denoiser, interval=2.0, cells=4):
        for t in times:
            found = answer(denoiser, FOURIER, t)
            torch.testing.assert_close(found, expected[t], rtol=1e-4, atol=1e-5)
            assert torch.equal(found, before[t]) == (t > 2 or t == 0.5)  # the first cell is told its upper edge, 0.5
        score = denoiser.model(FOURIER.x(), torch.full((2,), 1.1)).sample
        told = denoiser.model(FOURIER.x(), torch.full((2,), 1.4)).sample
        torch.testing.assert_close(score * 1.1, told * 1.4)


@everyone
def test_k_inside_a_cell_is_exactly_zero(name):
    """Between neighbouring timesteps of one cell a hooked model's Lipschitz constant is 0.0; over an edge, above the interval and without the hook it is not."""
    case = ALL[name]
    denoiser = case()
    flow = isinstance(denoiser.process, nz.StraightPath)
    inside = torch.tensor([[0.005, 0.006], [0.021, 0.04], [0.081, 0.1]], dtype=torch.float64)
    outside = torch.tensor([[0.02, 0.021], [0.15, 0.16], [0.5, 0.6]], dtype=torch.float64)
    measure = lambda pairs: nz.lipschitz(denoiser, case.x(), times=pairs, condition=case.condition).value  # noqa: E731
    assert bool((measure(inside) > 0).all())
    with share_timesteps(denoiser, **PAPER):
        assert measure(inside).tolist() == [0.0, 0.0, 0.0]
        assert bool((measure(outside) > 0).all())
    assert bool((measure(inside) > 0).all()) and flow == ARCHITECTURES[type(denoiser.model).__name__].flow


def test_samples_differ_where_the_grid_visits_a_cell_and_not_on_stride_20():
    """Sharing changes the samples of DDIM on 50 trailing steps, and not one bit on 50 leading ones, 20 timesteps apart."""
    case = CASES["ddpm"]
    denoiser = case()
    options = {"shape": case.shape, "solver": nz.DDIM(), "steps": 50, "seeds": [1]}
    for spacing in ("trailing", "leading"):
        grid = nz.TimestepGrid(spacing)
        alone = nz.sample(denoiser, grid=grid, **options)
        with share_timesteps(denoiser, **PAPER):
            shared = nz.sample(denoiser, grid=grid, **options)
        assert torch.equal(alone, shared) == (spacing == "leading")


# ---- coming and going


@everyone
def test_unshare_leaves_no_trace(name):
    """After unshare, and after a with block that fails, the answers, hooks and attributes of every module are what they were."""
    case = ALL[name]
    denoiser = case()
    before = answer(denoiser, case, 0.05)
    state = {
        name: {key: repr(value) for key, value in vars(module).items()}
        for name, module in denoiser.model.named_modules()
    }
    share_timesteps(denoiser.model, **PAPER)
    assert not torch.equal(answer(denoiser, case, 0.05), before)
    unshare(denoiser)
    with pytest.raises(ZeroDivisionError), share_timesteps(denoiser, **PAPER):
        _ = 1 / 0
    with share_timesteps(denoiser, **PAPER):
        unshare(denoiser.model)  # by hand, before the end of the block
    assert torch.equal(answer(denoiser, case, 0.05), before)
    assert state == {
        name: {key: repr(value) for key, value in vars(module).items()}
        for name, module in denoiser.model.named_modules()
    }


def test_a_pipeline_is_shared_by_name_of_its_model():
    """On a pipeline, its model and its Denoiser sharing is one thing: done once, seen by all, undone once."""
    case = CASES["ddpm"]
    pipeline = diffusers.DDPMPipeline(case.model(), diffusers.DDPMScheduler())
    denoiser = from_diffusers(pipeline)
    share_timesteps(pipeline, **PAPER)
    for source in (pipeline, pipeline.unet, denoiser, denoiser.network, nz.Guided(denoiser, denoiser, 2.0)):
        with pytest.raises(CheckpointError, match="is shared already; unshare it first"):
            share_timesteps(source, **PAPER)
    unshare(denoiser)
    for source in (pipeline, pipeline.unet, denoiser):
        with pytest.raises(ArgumentError, match="this UNet2DModel is not shared"):
            unshare(source)


def test_stock_pipelines_sample_shared():
    """DDIMPipeline with the hook gives the images of our sampler with Shared: the hook reaches a stock pipeline's own loop."""
    torch.manual_seed(0)
    config = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "clip_sample": False}
    pipeline = diffusers.DDIMPipeline(unet().eval(), diffusers.DDIMScheduler(**config))
    pipeline.set_progress_bar_config(disable=True)
    denoiser = from_diffusers(pipeline)
    shared = nz.Shared(nz.Timestep(1000), interval=400, cells=2)
    own = nz.Denoiser(denoiser.network, denoiser.process, denoiser.parameterization, shared)

    def images():
        generator = torch.Generator().manual_seed(1)
        return torch.from_numpy(pipeline(generator=generator, num_inference_steps=25, output_type="np").images)

    alone = images()
    with share_timesteps(pipeline, interval=400, cells=2):
        told = images()
    found = nz.sample(own, (3, 8, 8), solver=nz.DDIM(), grid=nz.TimestepGrid(), steps=25, seeds=[1])
    shown = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert (shown - told).abs().max() < 1e-4
    assert (shown - alone).abs().max() > 1e-3


def test_the_number_of_timesteps_is_the_schedulers():
    """A pipeline of 50 timesteps is not shared as one of 1000; told so, it is."""
    pipeline = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler(num_train_timesteps=50))
    with pytest.raises(ArgumentError, match="this model counts 50 timesteps, not 1000; say steps=50"):
        share_timesteps(pipeline, interval=20, cells=4)
    with share_timesteps(pipeline, interval=20, cells=4, steps=50) as sharing:
        assert sharing.conditioning == nz.Shared(nz.Timestep(50), interval=20, cells=4)


def test_a_move_and_a_copy_keep_the_sharing():
    """Casting the model and copying it deeply keep the hook; a copy is unshared without touching the other."""
    case = CASES["ddpm"]
    model = case.model()
    share_timesteps(model, **PAPER)
    x, same = case.x(), lambda one, x: torch.equal(one(x, 21).sample, one(x, 38).sample)
    other = copy.deepcopy(model)
    with torch.no_grad():
        assert same(model.to(torch.bfloat16), x.bfloat16()) and same(model.to(torch.float64), x.double())
        assert same(other, x)
        unshare(other)
        assert not same(other, x) and same(model, x.double())
    unshare(model)


def test_compiled_models_follow():
    """torch.compile in one graph gives the eager answers, whether sharing began or ended before or after it compiled."""
    case = CASES["ddpm"]
    model, x = case.model(), case.x()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    low, high = torch.tensor([21, 21]), torch.tensor([38, 38])
    with torch.no_grad():
        expected = model(x, high).sample
        assert torch.equal(compiled(x, high).sample, expected)
        share_timesteps(compiled, **PAPER)
        assert torch.equal(compiled(x, high).sample, model(x, low).sample)
        assert not torch.equal(compiled(x, high).sample, expected)
        unshare(compiled)
        assert torch.equal(compiled(x, high).sample, expected)


# ---- what is refused


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (lambda: torch.nn.Linear(1, 1), PAPER, CheckpointError, "Linear is no model that nearzero knows; known: UNet2DModel, UNet2DCond"),
        (lambda: 3, PAPER, CheckpointError, "int is no model"),
        (lambda: nz.Denoiser(torch.nn.Linear(1, 1), nz.LinearVP(), nz.Epsilon(), nz.Time()), PAPER, CheckpointError, "Denoiser is no model"),
        (unet, {"interval": 100, "cells": 7}, ArgumentError, "do not divide into 7 equal cells"),
        (unet, {"interval": 2000, "cells": 5}, ArgumentError, "exceeds the 1000 timesteps"),
        (unet, {"interval": 100, "cells": 0}, ArgumentError, "positive integer of cells"),
        (CASES["sd3"].model, {"interval": 1200, "cells": 5}, ArgumentError, "none of the 1000 timesteps"),
        (CASES["sd3"].model, {"interval": 100, "cells": 5, "steps": 0}, ArgumentError, "positive integer of steps"),
        (lambda: (CASES["sdxl"]()), {**PAPER, "steps": 500}, ArgumentError, "counts 1000 timesteps, not 500"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_is_named(source, options, error, message):
    """One line that names the value and the remedy or what is known, and no hook is left behind."""
    made = source()
    with pytest.raises(error, match=message) as caught:
        share_timesteps(made, **options)
    assert "\n" not in str(caught.value)
    if isinstance(made, torch.nn.Module):
        assert not any(module._forward_pre_hooks for module in made.modules())


def test_a_denoiser_that_shares_by_itself_gets_no_hook():
    """Sharing what is shared moves flow matching's numbers down by a cell: refused."""
    denoiser = CASES["sd3"]()
    shared = nz.Shared(denoiser.conditioning, interval=0.1, cells=5)
    own = nz.Denoiser(denoiser.network, denoiser.process, denoiser.parameterization, shared)
    with pytest.raises(CheckpointError, match="shared already, by its conditioning"):
        share_timesteps(own, **PAPER)


def test_two_models_are_shared_one_by_one():
    """A guided pair of different models names no single one."""
    one, other = CASES["ddpm"](), CASES["ddpm"]()
    with pytest.raises(ArgumentError, match="holds 2 models; share them one by one"):
        share_timesteps(nz.Guided(one, other, 2.0), **PAPER)


def test_a_unet_of_flow_matching_is_shared_in_its_own_times():
    """What a timestep is comes from the scheduler where there is one: with flow matching timestep 20 closes the first cell, with DDPM it opens the second."""
    model = unet()
    for scheduler, told in ((FLOW(), 0.0), (diffusers.DDIMScheduler(), 20.0)):
        with share_timesteps(from_diffusers((model, scheduler)), **PAPER):
            (stairs,) = model.time_proj._forward_pre_hooks.values()
            assert stairs.share(torch.tensor([20.0])).item() == told
