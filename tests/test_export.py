"""Out to diffusers: what a stock pipeline draws from an export is what nearzero's hook makes it draw, bit for bit; nothing loads unshared."""

import json
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import nearzero as nz
from conftest import pictures, tiny_recipe
from nearzero import recipes
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.export import MARK, to_diffusers
from nearzero.interop.exported import GUARD, SHARED
from nearzero.interop.finetune import finetune
from nearzero.interop.imported import from_diffusers
from nearzero.interop.pipeline_run import TRAINING, open_run
from nearzero.interop.sharing import share_timesteps, shared_by, unshare
from nearzero.interop.table import KEY
from nearzero.run import Run
from nearzero.training.loop import train
from test_interop_models import CASES, IMAGE, unet

PAPER = {"interval": 100, "cells": 5}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
every = pytest.mark.parametrize("name", CASES)
QUIET = "ignore::UserWarning"


def lively(model):
    """A model whose answer depends on the time as a trained one's does, not as little as a fresh one's."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def stock(clip=False, **config):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False}
    small = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (8,), "norm_num_groups": 4}
    model = lively(diffusers.UNet2DModel(**small, **blocks, **config))
    pipeline = diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(clip_sample=clip))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(model, scheduler, steps, dtype):
    """Two images (2, 3, 8, 8): DDPM's and DDIM's pipelines as they are, the loop of any other around a scheduler."""
    model, generator = model.to(dtype), torch.Generator().manual_seed(1)
    kind = {"DDPMScheduler": diffusers.DDPMPipeline, "DDIMScheduler": diffusers.DDIMPipeline}.get(
        type(scheduler).__name__
    )
    if kind is not None:
        pipeline = kind(model, scheduler)
        pipeline.scheduler = scheduler
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(2, generator=generator, num_inference_steps=steps, output_type="pt").images
    x = torch.randn(2, *IMAGE, generator=generator).to(dtype)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(model(x, t).sample, t, x).prev_sample
    return x


DDPM, DDIM = diffusers.DDPMScheduler, diffusers.DDIMScheduler
DPM, UNIPC = diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler
MATRIX = [(DDPM, 1000), (DDIM, 20), (DDIM, 100), (DPM, 20), (UNIPC, 20)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "steps"), MATRIX)
def test_export_a_is_the_hook_bit_for_bit(tmp_path, kind, steps, dtype):
    """Stock pipeline(export A) = stock pipeline(model with the hook), and the model alone draws something else.

    clip_sample keeps an untrained model's images inside [0, 1], whose ends would hide what differs.
    """
    pipeline = stock(clip=True)
    with share_timesteps(pipeline, **PAPER):
        made = to_diffusers(pipeline, tmp_path / "a")
        assert (made.kind, made.pipeline) == ("A", "DDPMPipeline")
        exported = diffusers.DDPMPipeline.from_pretrained(tmp_path / "a").unet
        assert type(exported) is diffusers.UNet2DModel
        scheduler = kind.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        hooked = drawn(pipeline.unet, scheduler, steps, dtype)
    assert torch.equal(drawn(exported, scheduler, steps, dtype), hooked)
    few = min(steps, 100)  # the control need not take as long again
    assert not torch.equal(drawn(pipeline.unet, scheduler, few, dtype), drawn(exported, scheduler, few, dtype))


def test_our_sampler_agrees_with_the_stock_pipeline(tmp_path):
    """DDIM, 20 trailing steps of the export, here and in diffusers: a relative 1e-4 in float32."""
    pipeline = stock()
    pipeline.scheduler = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
    denoiser = from_diffusers(tmp_path / "a")
    assert denoiser.conditioning == nz.Shared(nz.Timestep(1000), **PAPER) and denoiser.grid() == nz.TimestepGrid(
        "trailing"
    )
    ours = nz.sample(denoiser, IMAGE, solver=nz.DDIM(), grid=denoiser.grid(), steps=20, seeds=[4])
    opened = diffusers.DDIMPipeline.from_pretrained(tmp_path / "a")
    opened.set_progress_bar_config(disable=True)
    scheduler, x = opened.scheduler, torch.randn(1, *IMAGE, generator=torch.Generator().manual_seed(4))
    scheduler.set_timesteps(20)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(opened.unet(x, t).sample, t, x).prev_sample
    assert (ours - x).abs().max() <= 1e-4 * x.abs().max()


def test_export_a_opens_without_nearzero(tmp_path):
    """An environment that has diffusers and no nearzero draws the same bits."""
    pipeline = stock()
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
        scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
        here = drawn(pipeline.unet, scheduler, 20, torch.float32)
    code = f"""
import sys
sys.path.append({sysconfig.get_paths()["purelib"]!r})
import importlib.util
assert importlib.util.find_spec("nearzero") is None
import diffusers, torch
from safetensors.torch import save_file
torch.set_num_threads(1)
pipeline = diffusers.DDIMPipeline.from_pretrained({str(tmp_path / "a")!r})
pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
images = pipeline(2, generator=torch.Generator().manual_seed(1), num_inference_steps=20, output_type="pt").images
save_file({{"images": images}}, {str(tmp_path / "images.safetensors")!r})
"""
    subprocess.run(
        [sys.executable, "-S", "-c", code], check=True, capture_output=True
    )  # -S: no nearzero in develop mode
    assert torch.equal(load_file(tmp_path / "images.safetensors")["images"], here)


@pytest.mark.parametrize("embedding", ["positional", "learned"])
def test_export_a_comes_back_as_the_model_that_it_was_made_of(tmp_path, embedding):
    """from_diffusers(export A): the old embedding with Shared as the conditioning; K inside a cell is exactly 0; export again: the same bytes."""
    pipeline = stock(time_embedding_type=embedding, num_train_timesteps=1000)
    x = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(5))
    with share_timesteps(pipeline, **PAPER), torch.no_grad():
        to_diffusers(pipeline, tmp_path / "a")
        hooked = pipeline.unet(x, 37).sample
    denoiser = from_diffusers(tmp_path / "a")
    assert denoiser.model.config.time_embedding_type == embedding
    with torch.no_grad():
        assert torch.equal(denoiser.output(x, 0.038)[0], hooked)
    curve = nz.lipschitz(denoiser, x, times=torch.tensor([0.021, 0.03, 0.04, 0.041], dtype=torch.float64))
    assert curve.value[:2].tolist() == [0.0, 0.0] and curve.value[2] > 0
    if embedding == "learned":  # of the old table only the rows that are told are left
        return
    again = diffusers.DDPMPipeline(denoiser.model, pipeline.scheduler)
    with share_timesteps(again, **PAPER):
        to_diffusers(again, tmp_path / "b")
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_export_comes_back(tmp_path, dtype):
    """The table was rounded to the model's precision, wherever its folder is read in another."""
    pipeline = stock()
    pipeline.unet.to(dtype)
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
    assert load_file(tmp_path / "a" / WEIGHTS)["time_proj.weight"].dtype == dtype
    denoiser = from_diffusers(tmp_path / "a")
    assert denoiser.conditioning == nz.Shared(nz.Timestep(1000), **PAPER)
    assert denoiser.model.config.time_embedding_type == "positional"


def test_cells_that_were_changed_are_saved_changed(tmp_path):
    """An opened export B, shared anew, saves and exports the new cells; unshared it is not saved at all."""
    pipeline = stock(time_embedding_type="fourier")
    with share_timesteps(pipeline, interval=0.5, cells=5):
        to_diffusers(pipeline, tmp_path / "b")
    model = SHARED["SharedUNet2DModel"].from_pretrained(tmp_path / "b/unet")
    unshare(model)
    with pytest.raises(CheckpointError, match="is not shared any more"):
        model.save_pretrained(tmp_path / "none")
    share_timesteps(model, interval=0.3, cells=3)
    model.save_pretrained(tmp_path / "c")
    told = shared_by(SHARED["SharedUNet2DModel"].from_pretrained(tmp_path / "c"))
    assert (told.interval, told.cells) == (0.3, 3)
    to_diffusers(diffusers.DDPMPipeline(model, pipeline.scheduler), tmp_path / "d")
    assert shared_by(SHARED["SharedUNet2DModel"].from_pretrained(tmp_path / "d/unet")) == told


def test_a_scheduler_of_float_timesteps_takes_no_table(tmp_path):
    """Euler's timesteps are fractions, of which a table has no row: export B, which draws as the hook does."""
    pipeline = stock()
    pipeline = diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler()
    with share_timesteps(pipeline, **PAPER):
        assert to_diffusers(pipeline, tmp_path / "out").kind == "B"


def test_an_exported_table_is_not_shared_twice(tmp_path):
    """Opened by diffusers, the table has equal rows: a hook would share what it tells again."""
    pipeline = stock()
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
    with pytest.raises(CheckpointError, match="shared already, by its table"):
        share_timesteps(diffusers.DDPMPipeline.from_pretrained(tmp_path / "a"), **PAPER)


def test_float_timesteps_are_an_error_of_the_table(tmp_path):
    """Neither diffusers nor nearzero rounds a timestep to a row of the table."""
    pipeline = stock()
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
    opened = diffusers.DDPMPipeline.from_pretrained(tmp_path / "a")
    x = torch.zeros(1, *IMAGE)
    with pytest.raises(RuntimeError, match="indices"):
        opened.unet(x, torch.tensor(33.7))
    with pytest.raises(CheckpointError, match="timestep 33.5 is not in this model's table") as caught:
        from_diffusers(opened).output(x, 0.0345)
    assert caught.value.exit_code == 4


def rewritten(path, tensors=None, metadata=None):
    with safe_open(path, framework="pt") as file:
        found, told = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    save_file({**found, **(tensors or {})}, path, {**told, **(metadata or {})})


def test_a_table_that_contradicts_its_header_is_refused(tmp_path):
    """Trained apart, edited, or with another staircase in the header: exit 4, never a guess."""
    pipeline = stock()
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
    path = tmp_path / "a" / WEIGHTS
    whole, table = path.read_bytes(), load_file(path)["time_proj.weight"]
    table[3] += 1e-3
    edits = [
        ({"time_proj.weight": table}, {}, "trained or edited"),
        ({}, {KEY: json.dumps({"interval": 100, "cells": 4, "steps": 1000})}, "trained or edited"),
        ({}, {KEY: json.dumps({"interval": 100, "cells": 5, "steps": 900})}, "hold a table of 900"),
        ({}, {KEY: "[]"}, "bad timestep_sharing"),
        ({}, {KEY: "[" * 100_000}, "bad timestep_sharing"),
        ({}, {KEY: json.dumps({"interval": 1e9, "cells": 10**9, "steps": 10**9})}, "bad timestep_sharing"),
        ({}, {KEY: json.dumps({"interval": 100, "cells": 7, "steps": 1000})}, "bad timestep_sharing"),
    ]
    for tensors, metadata, message in edits:
        path.unlink()
        path.write_bytes(whole)
        rewritten(path, tensors, metadata)
        with pytest.raises(CheckpointError, match=message) as caught:
            from_diffusers(tmp_path / "a")
        assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


# ---- runs


@pytest.fixture(scope="module")
def etsdm(tmp_path_factory):
    return train(tiny_recipe(), pictures(), tmp_path_factory.mktemp("etsdm") / "run")


def test_a_run_of_etsdm_is_stock(etsdm, tmp_path):
    """Export A of a run: DDPM's pipeline with everything pinned, and what it predicts is what the run's network does."""
    made = to_diffusers(etsdm, tmp_path / "a")
    assert (made.kind, made.pipeline) == ("A", "DDPMPipeline")
    config = json.loads((tmp_path / "a/scheduler/scheduler_config.json").read_text())
    pinned = {
        **{"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        **{"prediction_type": "epsilon", "clip_sample": False, "thresholding": False, "timestep_spacing": "trailing"},
        **{"steps_offset": 0, "rescale_betas_zero_snr": False, "variance_type": "fixed_small", "trained_betas": None},
    }
    assert pinned.items() <= config.items()
    ours, theirs = etsdm.denoiser(), from_diffusers(str(tmp_path / "a"))
    assert theirs.conditioning == etsdm.recipe.conditioning and theirs.process == etsdm.recipe.process
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        for t in (0.001, 0.038, 0.5, 1.0):
            a, b = ours.output(x, t)[0], theirs.output(x, t)[0]
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    card = (tmp_path / "a/README.md").read_text()
    for told in (
        "library_name: diffusers",
        "interval=100, cells=5",
        etsdm.data["fingerprint"],
        "after 6 steps of 4 images",
    ):
        assert told in card


def other(recipe):
    tiny = tiny_recipe()
    return replace(recipes.small(recipe, 8, 1), network=tiny.network, training=tiny.training, steps=4)


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize(
    ("recipe", "kind", "pipeline"),
    [
        (recipes.ddpm, "A", "DDPMPipeline"),
        (recipes.ddpm_v, "A", "DDPMPipeline"),
        (recipes.ddpm_quadratic, "A", "DDPMPipeline"),
        (recipes.ddpm_cosine, "A", "DDPMPipeline"),
        (recipes.ddpm_zero_terminal_snr, "A", "DDPMPipeline"),
        (recipes.etsdm_continuous, "B", "NearzeroPipeline"),
        (recipes.edm, "B", "NearzeroPipeline"),
        (recipes.edm_shared, "B", "NearzeroPipeline"),
        (recipes.full, "B", "NearzeroPipeline"),
        (recipes.full_w, "B", "NearzeroPipeline"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_kind_of_run_comes_back(tmp_path, recipe, kind, pipeline):
    """The export opens with the run's axes and answers as the run does; a continuous one draws the run's own pixels."""
    run = train(
        replace(other(recipe()), training=replace(tiny_recipe().training, steps=1)), pictures(), tmp_path / "run"
    )
    made = to_diffusers(run.path, tmp_path / "out")
    assert (made.kind, made.pipeline) == (kind, pipeline)
    ours, theirs = run.denoiser(), from_diffusers(tmp_path / "out")
    for axis in ("process", "parameterization", "conditioning"):
        assert getattr(ours, axis) == getattr(theirs, axis)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        a, b = (one.output(x, 0.4 * ours.process.end)[0] for one in (ours, theirs))
    assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    if kind == "B":
        opened = nz.NearzeroPipeline.from_pretrained(tmp_path / "out")
        images = opened(seeds=[3, 4], output_type="pt").images
        assert (255 * images - run.sample([3, 4]).clamp(0, 255)).abs().max() <= 0.51
        opened_again = open_run(tmp_path / "out")  # as the commands do
        again, first = opened_again.sample([3]), run.sample([3])
        assert (again - first).abs().max() <= 1e-4 * first.abs().max() and opened_again.weights().is_file()
        with pytest.raises(AttributeError, match="NearzeroPipeline"):
            diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")


def test_a_learned_variance_goes_out_as_one(tmp_path):
    """A network of twice as many channels, fine-tuned on its mean, is exported for the one stock scheduler that reads both halves."""
    torch.manual_seed(0)
    model = lively(unet(out_channels=6))
    diffusers.DDPMPipeline(model, diffusers.DDPMScheduler(variance_type="learned_range")).save_pretrained(
        tmp_path / "in"
    )
    training = replace(TRAINING, steps=1, batch=4)
    run = finetune(tmp_path / "in", pictures(8, 8, 3), tmp_path / "run", share=(100, 5), training=training)
    to_diffusers(run, tmp_path / "out")
    opened = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    opened.set_progress_bar_config(disable=True)
    assert opened.scheduler.config.variance_type == "learned_range"
    assert opened(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 3)
    x = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        mean = run.denoiser().output(x, 0.038)[0]
        assert torch.equal(opened.unet(x, 37).sample[:, :3], mean)


def test_betas_without_a_name_are_listed(tmp_path):
    """A process that diffusers has no name for goes out beta by beta, and comes back to 1e-12."""
    process = nz.DiscreteVP.cosine(100, offset=0.02)
    recipe = replace(other(recipes.ddpm()), process=process, conditioning=nz.Timestep(100), steps=4)
    run = train(replace(recipe, training=replace(recipe.training, steps=1)), pictures(), tmp_path / "run")
    assert to_diffusers(run, tmp_path / "out").kind == "A"
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    found = from_diffusers(tmp_path / "out").process
    assert torch.allclose(found(t).sigma, process(t).sigma, rtol=1e-12)


# ---- export B of shared pipelines


def pipeline_of(case):
    """A pipeline of the case's class, whose other components need transformers and are left out."""
    model, scheduler = lively(case.model()), case.scheduler()
    part = "transformer" if "Transformer" in type(model).__name__ else "unet"

    def unets(self, unet, scheduler):
        diffusers.DiffusionPipeline.__init__(self)
        self.register_modules(unet=unet, scheduler=scheduler)

    def transformers(self, transformer, scheduler):
        diffusers.DiffusionPipeline.__init__(self)
        self.register_modules(transformer=transformer, scheduler=scheduler)

    told = {"__module__": "diffusers.pipelines", "__init__": unets if part == "unet" else transformers}
    return type(case.pipeline, (diffusers.DiffusionPipeline,), told)(model, scheduler), part


@every
def test_a_shared_model_of_any_class_is_saved_shared(tmp_path, name):
    """Saved and loaded by its own class it answers as with the hook; by the stock class it does not load at all; from_diffusers gives the model and its cells."""
    case = CASES[name]
    pipeline, part = pipeline_of(case)
    before = from_diffusers((pipeline.components[part], pipeline.scheduler))
    t = 0.037
    with share_timesteps(pipeline, **PAPER) as sharing, torch.no_grad():
        made = to_diffusers(pipeline, tmp_path / "out")
        hooked = before.output(case.x(), t, **case.condition)[0]
    table = name in ("ddpm", "classes")
    assert made.kind == ("A" if table else "B")
    denoiser = from_diffusers(tmp_path / "out")
    assert denoiser.conditioning == sharing.conditioning
    with torch.no_grad():
        alone = before.output(case.x(), t, **case.condition)[0]
        again = denoiser.output(case.x(), t, **case.condition)[0]
    assert (again - hooked).abs().max() <= 1e-6 * hooked.abs().max()
    assert (alone - hooked).abs().max() > 1e-4 * hooked.abs().max()
    if table:
        return
    stock_class, shared = type(pipeline.components[part]), SHARED[f"Shared{type(pipeline.components[part]).__name__}"]
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert index[part] == ["nearzero", shared.__name__] and getattr(nz, shared.__name__) is shared
    opened = shared.from_pretrained(tmp_path / "out" / part)
    assert shared_by(opened) == sharing.conditioning
    opened.save_pretrained(tmp_path / "again")  # after fine-tuning, say
    for place in (tmp_path / "out" / part, tmp_path / "again"):
        assert GUARD in (place / "config.json").read_text()
        with pytest.raises((ValueError, TypeError, UnboundLocalError)):
            stock_class.from_pretrained(place)


def test_diffusers_finds_the_class_once_nearzero_is_imported(tmp_path):
    """DiffusionPipeline.from_pretrained, in a new process: with nearzero the cells are there, without it an error names it."""
    pipeline = stock(time_embedding_type="fourier")
    pipeline = diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler)
    with share_timesteps(pipeline, interval=0.5, cells=5):
        assert to_diffusers(pipeline, tmp_path / "out").kind == "B"
    code = """
import sys
{first}
import diffusers
pipeline = diffusers.DiffusionPipeline.from_pretrained({folder!r})
print(type(pipeline.unet).__name__, len(pipeline.unet.time_proj._forward_pre_hooks))
"""
    runs = {}
    for first in ("import nearzero", ""):
        text = code.format(first=first, folder=str(tmp_path / "out"))
        runs[first] = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert runs["import nearzero"].stdout == "SharedUNet2DModel 1\n", runs["import nearzero"].stderr
    assert runs[""].returncode != 0 and "nearzero" in runs[""].stderr and not runs[""].stdout


# ---- bad input


def test_what_cannot_be_exported_is_said(etsdm, tmp_path):
    """Nothing shared, no source, a folder that is there or not ours: one line each, and nothing is written."""
    for source, error, message in [
        (stock(), ArgumentError, "not shared, so nearzero has nothing to add"),
        (7, CheckpointError, "expected a run, its folder or a pipeline"),
        (tmp_path / "none", CheckpointError, "does not exist"),
    ]:
        with pytest.raises(error, match=message):
            to_diffusers(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("keep")
    with pytest.raises(ArgumentError, match="no export of nearzero's"):
        to_diffusers(etsdm, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/file").read_text() == "keep"
    to_diffusers(etsdm, tmp_path / "out")
    with pytest.raises(ArgumentError, match="exists"):
        to_diffusers(etsdm, tmp_path / "out")
    to_diffusers(etsdm, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / MARK).exists()


@pytest.mark.parametrize("at", [1, 2])
def test_a_failing_disk_leaves_no_half_export(etsdm, tmp_path, faults, at):
    """The folder appears whole or not at all."""
    faults.arm("replace", at, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        to_diffusers(etsdm, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_exported_run_that_is_damaged_is_refused(etsdm, tmp_path):
    """A foreign recipe, missing weights: exit 4."""
    recipe = other(recipes.full_w())
    run = train(replace(recipe, training=replace(recipe.training, steps=1)), pictures(), tmp_path / "run")
    to_diffusers(Run.load(run.path), tmp_path / "out")
    path = tmp_path / "out/model/config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "recipe": {"class": "os.system"}}))
    with pytest.raises(CheckpointError, match="unknown class 'os.system'"):
        from_diffusers(tmp_path / "out")
    path.write_text(json.dumps({**config, "recipe": {**config["recipe"], "steps": -1}}))
    with pytest.raises(CheckpointError, match="does not work"):
        from_diffusers(tmp_path / "out")
    path.write_text(json.dumps(config))
    (tmp_path / "out/model/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no diffusion_pytorch_model"):
        from_diffusers(tmp_path / "out")


def test_a_folders_name_stays_text_in_the_card(etsdm, tmp_path):
    """HTML and line breaks of a run's name are escaped in the heading too."""
    path = tmp_path / "<img src=x>\nrun"
    shutil.copytree(etsdm.path, path)
    to_diffusers(path, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    assert "<img" not in card and "# The run &lt;img src=x> run\n" in card


def test_cells_of_other_timesteps_than_the_schedulers_are_refused(tmp_path):
    """An export whose scheduler was replaced by one that counts 500 timesteps, and a table of 500 under one of 1,000: exit 4."""
    pipeline = stock()
    with share_timesteps(pipeline, **PAPER):
        to_diffusers(pipeline, tmp_path / "a")
    diffusers.DDPMScheduler(num_train_timesteps=500).save_pretrained(tmp_path / "a/scheduler")
    small = stock(time_embedding_type="learned", num_train_timesteps=500)
    for source, message in ((tmp_path / "a", "its cells count 1000"), (small, "its table holds 500")):
        with pytest.raises(CheckpointError, match=message) as caught:
            from_diffusers(source)
        assert caught.value.exit_code == 4
