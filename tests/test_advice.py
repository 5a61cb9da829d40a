"""Whether to share and how: laws of the rule of thumb, the network with its cells beside the one without, and models of latents."""

import json

import diffusers
import pytest
import torch
from safetensors.torch import save_file

import nearzero as nz
from conftest import pictures, write_folder
from nearzero.cli import run as command
from nearzero.diagnostics.diagnosis import diagnose
from nearzero.diagnostics.lipschitz import LipschitzCurve
from nearzero.diagnostics.price import price
from nearzero.diagnostics.probe import Timesteps
from nearzero.diagnostics.recommend import LEVELS, STEEP, recommend
from nearzero.errors import ArgumentError, CheckpointError, DataError
from nearzero.interop.advice import advise, with_cells
from nearzero.interop.subject import condition, open_subject
from test_interop_models import CASES, TEXT, drawn, write

STEPS = 1000


def diagnosis(value, end=0.1):
    """A diagnosis with this curve K(k, k + 1), k = 0 .. 998, and nothing else."""
    value = torch.as_tensor(value, dtype=torch.float64)
    t = torch.arange(1, STEPS, dtype=torch.float64) / STEPS
    curve = LipschitzCurve(t, value, torch.zeros_like(value), t + 1 / STEPS, Timesteps(nz.DiscreteVP.linear()))
    return nz.Diagnosis(end, 1, torch.zeros(STEPS), "", curve, None, None)


K = torch.arange(1, STEPS, dtype=torch.float64)


def rough(dim=16, count=64, size=0.5):
    """Images of independent numbers: nothing but their size tells noise from them."""
    return size * torch.randn(count, dim, generator=torch.Generator().manual_seed(1))


LINEAR = nz.DiscreteVP.linear()


@pytest.mark.parametrize("flat", [1e-9, 0.3, 40.0])
def test_a_flat_curve_has_nothing_to_share(flat):
    """K near 0 as large as elsewhere, whatever its size: 0 cells."""
    found = recommend(diagnosis(torch.full((STEPS - 1,), flat)), rough(), LINEAR)
    assert (found.interval, found.cells) == (0, 0) and found.ratio == pytest.approx(1)
    assert "nothing to share" in found.why


@pytest.mark.parametrize("size", [0.01, 0.5])
@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_cells_are_the_fewest_that_cost_little_enough(scale, size):
    """K = scale (1/k + 1/1000): the interval reaches the last steep timestep whatever the scale, and the next coarser division costs more than LEVELS of these images."""
    value, x0 = scale * (1 / K + 1e-3), rough(size=size)
    found = recommend(diagnosis(value), x0, LINEAR)
    level = value[K > 0.1 * STEPS].median()
    steep = int((value[:200] > STEEP * level).nonzero()[-1])
    assert steep < found.interval <= steep + 10 and found.interval % 10 == 0

    def costs(cells):
        return price(x0, LINEAR, nz.Shared(nz.Timestep(STEPS), interval=found.interval, cells=cells)).levels

    divisions = [n for n in range(1, found.interval // 2 + 1) if found.interval % n == 0]
    assert found.cells in divisions and found.levels == pytest.approx(costs(found.cells), rel=1e-9)
    assert all(costs(n) > LEVELS for n in divisions if n < found.cells)
    assert (found.levels <= LEVELS) != ("costs accuracy" in found.why)


def test_the_singularity_of_exact_points_is_found():
    """Data at eight points on the linear schedule, K ~ 1/t: advised to share, and with those cells K is 0 but on their edges."""
    points = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    denoiser = nz.PointCloud(points.double()).denoiser(nz.DiscreteVP.linear())
    x0 = points.double()
    measure = lambda name, one: diagnose(one, x0)  # noqa: E731
    found = advise(denoiser, measure("", denoiser), x0, None, measure)
    assert found.recommendation.cells > 0 and found.recommendation.ratio > 10
    ((name, after),) = found.shared.items()
    interval, cells = found.recommendation.interval, found.recommendation.cells
    assert name == f"shared {interval}/{cells}"
    moving = (after.lipschitz.value[:interval] > 0).nonzero().flatten() + 1
    assert moving.tolist() == [interval // cells * j for j in range(1, cells + 1)]
    assert "finetune" in found.text[-1] and str(len(moving)) in found.text[1]


@pytest.mark.parametrize(
    ("conditioning", "shared"),
    [
        (nz.Timestep(1000), nz.Shared(nz.Timestep(1000), interval=100, cells=5)),
        (nz.Time(1000.0), nz.Shared(nz.Time(1000.0), interval=0.1, cells=5)),
    ],
)
def test_cells_are_in_timesteps_whatever_is_told(conditioning, shared):
    """100/5 means the first tenth of the range, in the unit of what is told."""
    inner = nz.PointCloud(torch.zeros(1, 4)).denoiser(nz.DiscreteVP.linear())
    denoiser = nz.Denoiser(inner.network, inner.process, inner.parameterization, conditioning)
    assert with_cells(denoiser, 100, 5).conditioning == shared
    with pytest.raises(CheckpointError, match="shared already, "):
        with_cells(with_cells(denoiser, 100, 5), 100, 5)
    other = nz.Denoiser(inner.network, inner.process, inner.parameterization, nz.LogSigma())
    with pytest.raises(ArgumentError, match="LogSigma tells no timesteps"):
        with_cells(other, 100, 5)


@pytest.mark.parametrize("steps", [10, 50, 100, 300])
@pytest.mark.parametrize("last", [0, 1, 5])
def test_coarse_schedules_are_advised_too(steps, last):
    """Only the first timesteps steep, on a schedule of few: two timesteps at least, cells that divide them."""
    t = torch.arange(1, steps, dtype=torch.float64) / steps
    value = torch.where(torch.arange(steps - 1) <= last, 10.0, 1.0).double()
    process = nz.DiscreteVP.linear(steps)
    curve = LipschitzCurve(t, value, torch.zeros_like(value), t + 1 / steps, Timesteps(process))
    found = recommend(nz.Diagnosis(0.3, 1, torch.zeros(steps), "", curve, None, None), rough(), process)
    assert last < found.interval <= steps and found.interval % found.cells == 0


# ---- models of latents


@pytest.fixture
def latent(tmp_path):
    """A tiny Stable Diffusion: the model of latents (4, 8, 8), a VAE that halves once, no text encoder."""
    folder = tmp_path / "sd"
    write(folder, CASES["sd15"])
    torch.manual_seed(4)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    small = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4, "sample_size": 16}
    coder = diffusers.AutoencoderKL(**blocks, **small, scaling_factor=0.18215, shift_factor=0.1)
    coder.save_pretrained(folder / "vae")
    save_file({name: value[:1] for name, value in drawn(**TEXT).items()}, tmp_path / "told.safetensors")
    return folder, coder.eval()


def test_images_become_the_pipelines_own_latents(latent):
    """x0 = (mean of the posterior - shift) * scale of pixels in [-1, 1], image by image."""
    folder, coder = latent
    subject = open_subject(folder)
    assert (subject.size, subject.channels, subject.needs) == (16, 3, ("encoder_hidden_states",))
    pixels = pictures(6, 16, 3).pixels
    with torch.no_grad():
        mean = coder.encode(pixels.float() / 127.5 - 1).latent_dist.mean
    assert torch.allclose(subject.encode(pixels), (mean - 0.1) * 0.18215, atol=1e-6)


def test_a_model_of_latents_is_diagnosed_by_command(latent, tmp_path, capsys):
    """With its VAE, and what it must be told from a file: K before and after; without the file, exit 2 says which tensor is missing."""
    folder, _ = latent
    write_folder(tmp_path / "images", 4, 16, "RGB")
    asked = ["diagnose", str(folder), "--data", str(tmp_path / "images"), "--images", "4", "--share", "20/2", "--json"]
    asked += ["--interval", "0.02", "--every", "200"]
    assert command([*asked, "--condition", str(tmp_path / "told.safetensors")]) == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    before, after = (found[name]["lipschitz"]["value"][:21] for name in ("sd", "shared 20/2"))
    assert min(before) > 0 and [k for k in range(20) if after[k] > 0] == [9, 19]
    assert command(asked) == 2
    assert "encoder_hidden_states" in capsys.readouterr().err


def test_conditions_that_do_not_fit_are_refused(latent, tmp_path):
    """Rows for other images, a tensor that is not asked for, no VAE."""
    folder, _ = latent
    subject, images = open_subject(folder), nz.Images(pictures(4, 16, 3).pixels)
    path = tmp_path / "other.safetensors"
    save_file({"encoder_hidden_states": torch.zeros(3, 5, 12)}, path)
    with pytest.raises(DataError, match="has 3 rows for 4 images; give 1 or 4"):
        condition(subject, images, path)
    save_file({"encoder_hidden_states": torch.zeros(4, 5, 12), "text": torch.zeros(1)}, path)
    with pytest.raises(ArgumentError, match="holds text, which this model is not told"):
        condition(subject, images, path)
    index = json.loads((folder / "model_index.json").read_text())
    del index["vae"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="a model of latents and no vae"):
        open_subject(folder)
