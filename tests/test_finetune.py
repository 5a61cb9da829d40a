"""Healing a checkpoint: a fine-tuned pipeline starts from its own weights, is a run like any other, and keeps its cells through save and load."""

import json
import shutil
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch

import nearzero as nz
from conftest import pictures, tree
from nearzero import recipes
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.interop.finetune import finetune
from nearzero.interop.imported import from_diffusers
from nearzero.interop.pipeline_run import TRAINING, open_run
from nearzero.interop.sharing import share_timesteps
from nearzero.manifest import Keep
from nearzero.run import Run
from nearzero.training.loop import train
from test_export import other, stock, to_diffusers
from test_interop_models import CASES, write

FEW = replace(TRAINING, steps=4, batch=4, learning_rate=1e-3)
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(8))


@pytest.fixture
def folder(tmp_path):
    """A pipeline's folder: 8 x 8 colour, DDPM."""
    stock().save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


@pytest.fixture(scope="module")
def healed(tmp_path_factory):
    """A pipeline that was trained for four steps with five cells, every checkpoint kept."""
    at = tmp_path_factory.mktemp("healed")
    stock().save_pretrained(at / "pipeline")
    return finetune(
        at / "pipeline", pictures(12, 8, 3), at / "run", share=(100, 5), training=FEW, keep=Keep(9), checkpoint_every=2
    )


def answer(denoiser, t=0.038):
    with torch.no_grad():
        return denoiser.output(X, t)[0]


def test_it_starts_from_the_pipelines_weights(folder, tmp_path, healed):
    """Checkpoint 0 holds them, as weights and as their average; what four steps leave is something else."""
    start = replace(healed, pin=healed.path / "checkpoints/000000000")
    alone = from_diffusers(folder)
    for ema in (True, False):
        assert torch.equal(answer(start.denoiser(ema=ema), 0.5), answer(alone, 0.5))
    assert not torch.equal(answer(healed.denoiser(ema=False), 0.5), answer(alone, 0.5))
    with share_timesteps(alone, interval=100, cells=5):
        assert torch.equal(answer(start.denoiser()), answer(alone))  # and it is told the cell's number


def test_it_is_a_run_like_any_other(folder, tmp_path):
    """Two steps, and two more by train(resume=True), are four steps, bit for bit; a killed start is no run."""
    how = {"share": (100, 5), "seed": 3}
    whole = finetune(folder, pictures(12, 8, 3), tmp_path / "whole", training=FEW, **how)
    part = finetune(folder, pictures(12, 8, 3), tmp_path / "part", training=replace(FEW, steps=2), **how)
    part = train(Run.load(part.path).with_steps(4).recipe, pictures(12, 8, 3), part.path, seed=3, resume=True)
    for ema in (True, False):
        assert torch.equal(answer(whole.denoiser(ema=ema)), answer(part.denoiser(ema=ema)))
    record = json.loads((whole.path / "run.json").read_text())
    assert record["data"]["source"]["pipeline"] == str(folder) and record["recipe"]["network"]["kind"] == "UNet2DModel"


def test_sharing_survives_save_and_load(healed, tmp_path):
    """Run -> export A -> diffusers and from_diffusers: K inside a cell is exactly 0 and the answer is the run's."""
    made = to_diffusers(healed, tmp_path / "out")
    assert made.kind == "A"
    back = from_diffusers(tmp_path / "out")
    assert back.conditioning == nz.Shared(nz.Timestep(1000), interval=100, cells=5)
    assert torch.equal(answer(back), answer(healed.denoiser()))
    opened = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out").unet
    with torch.no_grad():
        a, b, c = (opened(X, k).sample for k in (25, 39, 40))
    assert torch.equal(a, b) and not torch.equal(b, c)


def test_a_further_fine_tuning_keeps_the_cells(healed, tmp_path):
    """An export is fine-tuned as it is told; other cells on top are refused."""
    to_diffusers(healed, tmp_path / "out")
    with pytest.raises(CheckpointError, match="shared already, 100/5"):
        finetune(tmp_path / "out", pictures(12, 8, 3), tmp_path / "again", share=(50, 5), training=FEW)
    assert not (tmp_path / "again").exists()
    again = finetune(tmp_path / "out", pictures(12, 8, 3), tmp_path / "again", training=replace(FEW, steps=1))
    assert again.recipe.conditioning == healed.recipe.conditioning
    assert to_diffusers(again, tmp_path / "out2").kind == "A"


def test_what_is_shared_by_a_hook_or_by_a_bare_table_is_not_trained_unshared(healed, tmp_path):
    """A hooked pipeline, and an export that diffusers saved again, without the header that says its cells: exit 4, no run."""
    pipeline = stock()
    share_timesteps(pipeline, interval=100, cells=5)
    to_diffusers(healed, tmp_path / "out")
    diffusers.DDPMPipeline.from_pretrained(tmp_path / "out").save_pretrained(tmp_path / "bare")
    for source, message in [(pipeline, "by a hook; unshare it"), (tmp_path / "bare", "by a table of timesteps")]:
        with pytest.raises(CheckpointError, match=message):
            finetune(source, pictures(12, 8, 3), tmp_path / "run", training=FEW)
        assert not (tmp_path / "run").exists()


def test_an_exported_run_is_not_fine_tuned(tmp_path):
    """It is a run already: the error says how it goes on."""
    recipe = other(recipes.full_w())
    run = train(replace(recipe, training=replace(recipe.training, steps=1)), pictures(), tmp_path / "w")
    to_diffusers(run, tmp_path / "out")
    with pytest.raises(CheckpointError, match="exported run .* nearzero train --resume"):
        finetune(tmp_path / "out", pictures(), tmp_path / "run", training=FEW)


def test_the_callers_generator_and_the_schedulers_options_stay(folder, tmp_path):
    """Reading, fine-tuning and exporting draw nothing from torch's own generator; what the scheduler cuts goes out as it came in."""
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "clip_sample": True, "clip_sample_range": 2.0}))
    before = torch.get_rng_state()
    run = finetune(folder, pictures(12, 8, 3), tmp_path / "run", share=(100, 5), training=replace(FEW, steps=1))
    to_diffusers(run, tmp_path / "healed")
    to_diffusers(folder, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    for out in ("healed", "again"):
        config = json.loads((tmp_path / out / "scheduler/scheduler_config.json").read_text())
        assert config["clip_sample"] is True and config["clip_sample_range"] == 2.0


def test_the_leading_grid_gives_way_to_the_trailing_one(folder, healed):
    """50 leading steps visit the lower edges of the cells alone: there sharing would change nothing in sampling."""
    assert from_diffusers(folder).grid() == nz.TimestepGrid("leading")
    assert healed.recipe.grid == nz.TimestepGrid("trailing")


def test_a_roll_back_before_the_first_save_returns_to_the_pipeline(folder, tmp_path, monkeypatch):
    """Ten steps that are not finite go back to checkpoint 0, not to fresh weights."""
    from nearzero.training import step as module

    broken, gradient = set(range(1, 3)), module.gradient

    def poisoned(state, *arguments):
        loss = gradient(state, *arguments)
        return loss * torch.nan if state.step + 1 in broken else loss

    monkeypatch.setattr(module, "gradient", poisoned)
    guard = nz.Guard(patience=2)
    long = replace(FEW, steps=3, learning_rate=1e-12)
    run = finetune(folder, pictures(12, 8, 3), tmp_path / "run", training=long, guard=guard)
    told = (run.path / "events.jsonl").read_text()
    assert "rolled_back" in told
    difference = (answer(run.denoiser(ema=False), 0.5) - answer(from_diffusers(folder), 0.5)).abs().max()
    assert difference <= 1e-6


def test_what_cannot_be_fine_tuned_is_said_and_leaves_nothing(folder, tmp_path):
    """Images of another size, a model that must be told more than the time, cells that are none, a folder that is there."""
    cases = [
        ({"images": pictures(12, 16, 3)}, DataError, "takes images of 8 x 8 with 3 channels"),
        ({"share": (100, 3)}, ArgumentError, "do not divide into 3 equal cells"),
        ({"share": (2000, 5)}, ArgumentError, "exceeds the 1000 timesteps"),
    ]
    for change, error, message in cases:
        how = {"images": pictures(12, 8, 3), "share": (100, 5), **change}
        with pytest.raises(error, match=message):
            finetune(folder, out=tmp_path / "run", training=FEW, **how)
        assert not (tmp_path / "run").exists()
    write(tmp_path / "sd", CASES["sd15"])
    with pytest.raises(CheckpointError, match="must also be told encoder_hidden_states"):
        finetune(tmp_path / "sd", pictures(12, 8, 3), tmp_path / "run", share=(100, 5), training=FEW)
    before = tree(folder)
    with pytest.raises(ArgumentError, match="exists and is no run folder"):
        finetune(folder, pictures(12, 8, 3), folder, share=(100, 5), training=FEW, overwrite=True)
    assert tree(folder) == before


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_disk_that_fails_at_the_start_leaves_no_run(folder, tmp_path, faults, at):
    """There is a run with the pipeline's weights, or there is none: never one that would start from fresh weights."""
    faults.arm("replace", at, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        finetune(folder, pictures(12, 8, 3), tmp_path / "run", share=(100, 5), training=FEW)
    assert not (tmp_path / "run").exists() or Run.load(tmp_path / "run").checkpoint() is not None


def test_without_peft_a_lora_says_what_to_install(folder, tmp_path, monkeypatch):
    """One line, nothing written."""
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(ArgumentError, match=r"needs peft; install it with: pip install 'nearzero\[lora\]'"):
        finetune(folder, pictures(12, 8, 3), tmp_path / "run", training=FEW, rank=2)
    assert not (tmp_path / "run").exists()


# ---- by command


@pytest.fixture
def array(tmp_path):
    np.save(tmp_path / "images.npy", pictures(12, 8, 3).pixels.permute(0, 2, 3, 1).numpy())
    return tmp_path / "images.npy"


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_from_pipeline_to_pipeline_by_command(folder, array, tmp_path, capsys):
    """diagnose, finetune, diagnose against, sample, export: each with exit 0, and the export has the cells."""
    out = tmp_path / "run"
    assert command(["diagnose", str(folder), "--data", str(array), "--images", "4", "--share", "40/2", "--json"]) == 0
    found = told(capsys)
    assert list(found["runs"]) == ["pipeline", "shared 40/2"] and "recommendation" in found
    after = found["runs"]["shared 40/2"]["lipschitz"]["value"]
    assert [k for k in range(40) if after[k] > 0] == [19, 39]
    asked = ["finetune", str(folder), "--data", str(array), "--share", "100/5", "--out", str(out), "--steps", "2"]
    assert command([*asked, "--batch", "4", "--json"]) == 0
    assert told(capsys)["kind"] == "A" and (out / "diffusers/unet").is_dir()
    assert command(["diagnose", str(out), "--against", str(folder), "--images", "4", "--json"]) == 0
    assert (
        command(["sample", str(out / "diffusers"), "-n", "2", "--steps", "3", "--out", str(tmp_path / "s"), "--json"])
        == 0
    )
    capsys.readouterr()
    assert command(["export", str(out), str(tmp_path / "e"), "--json"]) == 0
    assert told(capsys) | {"nearzero": 0} == {
        **{"schema_version": 1, "nearzero": 0, "command": "export", "run": str(out), "out": str(tmp_path / "e")},
        **{"kind": "A", "pipeline": "DDPMPipeline"},
    }
    assert from_diffusers(tmp_path / "e").conditioning == nz.Shared(nz.Timestep(1000), interval=100, cells=5)


def damaged(folder, at):
    """Copies of a pipeline, each with one fault."""
    for name in ("no scheduler", "no signal", "pickled", "two sizes"):
        shutil.copytree(folder, at / name)
    (at / "no scheduler/scheduler/scheduler_config.json").unlink()
    changes = {"no signal/scheduler/scheduler_config.json": {"rescale_betas_zero_snr": True}}
    for place, change in {**changes, "two sizes/unet/config.json": {"sample_size": [8, 8]}}.items():
        (at / place).write_text(json.dumps({**json.loads((at / place).read_text()), **change}))
    weights = at / "pickled/unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def test_bad_input_by_command(folder, array, tmp_path, capsys):
    """The exit code says which kind; one line says what."""
    pipeline, data, out = str(folder), ["--data", str(array)], ["--out", str(tmp_path / "run")]
    shutil.copytree(folder, tmp_path / "foreign")
    index = json.loads((tmp_path / "foreign/model_index.json").read_text())
    (tmp_path / "foreign/model_index.json").write_text(json.dumps({**index, "_class_name": "MinePipeline"}))
    damaged(folder, tmp_path)
    for arguments, code, message in [
        (["diagnose", pipeline], 3, "does not say which images it was trained on; name some with --data DIR"),
        (["diagnose", pipeline, *data, "--share", "100"], 2, "write INTERVAL/CELLS"),
        (["diagnose", pipeline, *data, "--images", "4", "--share", "100/3"], 2, "do not divide into 3 equal cells"),
        (["diagnose", str(tmp_path / "foreign"), *data], 4, "MinePipeline is no pipeline that nearzero knows"),
        (["finetune", pipeline, *data, *out, "--share", "0/5"], 2, "write INTERVAL/CELLS"),
        (["finetune", str(tmp_path / "foreign"), *data, *out], 4, "MinePipeline is no pipeline"),
        (["finetune", pipeline, "--data", str(tmp_path / "none"), *out], 3, "none"),
        (["diagnose", str(tmp_path / "no scheduler"), *data], 4, "scheduler_config.json is missing"),
        (["sample", str(tmp_path / "no signal"), "-n", "1", "--out", str(tmp_path / "s")], 4, "zero terminal SNR"),
        (["finetune", str(tmp_path / "pickled"), *data, *out], 4, "nearzero convert"),
        (["diagnose", str(tmp_path / "two sizes"), *data], 4, "says sample_size [8, 8]; write one number"),
        (["export", str(tmp_path / "two sizes"), str(tmp_path / "e")], 4, "says sample_size [8, 8]; write one number"),
        (["export", str(tmp_path / "none"), str(tmp_path / "e")], 4, "does not exist"),
        (["export", pipeline, pipeline], 2, "no export of nearzero's"),
    ]:
        assert command(arguments) == code, arguments
        said = capsys.readouterr().err
        assert message in said and said.count("nearzero: error") == 1, said
    assert not (tmp_path / "run").exists() and not (tmp_path / "e").exists()


def test_a_pipeline_opens_as_a_run(folder):
    """Its recipe says what its scheduler says; it samples with its own solver; it has weights and no history."""
    run = open_run(folder)
    assert (run.step, run.averages(), run.recipe.name) == (0, [], "pipeline")
    assert run.recipe.solver == nz.Ancestral("lower") and run.recipe.process == nz.DiscreteVP.linear()
    assert torch.equal(answer(run.denoiser()), answer(from_diffusers(folder)))
    with pytest.raises(ArgumentError, match="holds no average 'ema-1'"):
        run.denoiser(ema="ema-1")
