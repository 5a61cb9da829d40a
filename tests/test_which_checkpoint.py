"""Which of a run's checkpoints is meant, and which cells: --step and --share."""

import json

import pytest
import torch

import nearzero as nz
from conftest import pictures, tiny_recipe
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.pipeline_run import PipelineRun
from nearzero.manifest import Keep
from nearzero.training.loop import train


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of three steps that keeps the checkpoints of steps 2 and 3."""
    images = pictures(10)
    return train(
        tiny_recipe(steps=3), images, tmp_path_factory.mktemp("kept") / "run", checkpoint_every=1, keep=Keep(2)
    )


def test_an_earlier_checkpoint_is_the_run_as_it_was(kept, tmp_path):
    """Step 2 of three steps has the weights of a run of two steps, and samples as that does."""
    images = pictures(10)
    short = train(tiny_recipe(steps=2), images, tmp_path / "short")
    for name, value in short.denoiser().state_dict().items():
        assert torch.equal(kept.at(2).denoiser().state_dict()[name], value)
    assert kept.at(2).step == 2 and kept.step == 3
    torch.testing.assert_close(kept.at(2).sample([5]), short.sample([5]), rtol=0, atol=0)
    assert not torch.equal(kept.at(2).sample([5]), kept.sample([5]))


def test_a_step_that_is_not_kept_is_named(kept, capsys, tmp_path):
    """The error tells which there are; a damaged one is not read."""
    with pytest.raises(CheckpointError, match="no checkpoint of step 1; it keeps 2, 3"):
        kept.at(1)
    for line in (["sample", "--out", str(tmp_path / "s")], ["evaluate", "--fd"], ["evaluate", "--nll"]):
        assert command([line[0], str(kept.path), *line[1:], "--step", "1"]) == 4
        assert "keeps 2, 3" in capsys.readouterr().err
    weights = kept.path / "checkpoints" / "000000002" / "ema.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="has changed"):
        kept.at(2)
    weights.write_bytes(whole)


def test_a_pipeline_keeps_no_steps(kept, tmp_path):
    """Its weights are one set, and nobody says of which step."""
    one = PipelineRun(tmp_path, kept.recipe, {}, 0, {}, network=torch.nn.Identity())
    with pytest.raises(CheckpointError, match="leave --step out"):
        one.pinned(3)


def test_the_command_samples_that_step(kept, tmp_path, capsys):
    """`sample --step` says which step it drew from."""
    for step in (2, 3):
        assert (
            command(
                ["sample", str(kept.path), "--step", str(step), "-n", "1", "--out", str(tmp_path / str(step)), "--json"]
            )
            == 0
        )
        assert json.loads(capsys.readouterr().out)["step"] == step


def test_share_changes_the_condition_alone(tmp_path):
    """`train etsdm --share 50/10` is etsdm with other cells, and its name says so."""
    small = ["--steps", "1", "--batch", "2", "--size", "8", "--device", "cpu"]
    assert command(["train", "etsdm", "--share", "50/10", *small, "--out", str(tmp_path / "run")]) == 0
    recipe = nz.Run.load(tmp_path / "run").recipe
    assert recipe.name == "etsdm_50_10"
    assert recipe.conditioning == nz.Shared(nz.Timestep(1000), interval=50, cells=10)
    assert set(nz.recipes.differences(nz.recipes.sharing(nz.recipes.ddpm(), 50, 10), nz.recipes.ddpm())) == {
        "conditioning"
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["etsdm", "--share", "100/7"], "100"),
        (["etsdm", "--share", "5"], "INTERVAL/CELLS"),
        (["--resume", "--share", "100/5"], "needs a recipe"),
        (["edm_uncertainty", "--share", "0/5"], "INTERVAL/CELLS"),
    ],
)
def test_cells_that_cannot_be_are_refused(arguments, said, kept, capsys, tmp_path):
    """Before anything is read or written."""
    out = kept.path if "--resume" in arguments else tmp_path / "new"
    assert command(["train", *arguments, "--out", str(out)]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "new").exists()
    with pytest.raises(ArgumentError, match="cells"):
        nz.recipes.sharing(nz.recipes.ddpm(), 100, 7)
