"""A scheduler's config becomes axes, samples are diffusers' own, and what cannot be read is refused before anything runs."""

import json
import shutil

import diffusers
import pytest
import torch

import nearzero as nz
from nearzero.errors import ArgumentError, CheckpointError
from nearzero.interop.imported import from_diffusers
from nearzero.interop.pipelines import PIPELINES
from nearzero.registry import decode, encode
from nearzero.shifted import OffsetGrid, ShiftedGrid
from test_interop_models import CASES, FLOW, IMAGE, unet, write

DDIM, DDPM = diffusers.DDIMScheduler, diffusers.DDPMScheduler
SEEDS = [3, 4, 5]


def imported(scheduler, **more):
    torch.manual_seed(0)
    return from_diffusers((unet(**more).eval(), scheduler))


# ---- axes


@pytest.mark.parametrize(
    ("made", "process", "parameterization", "conditioning"),
    [
        (DDPM(), nz.DiscreteVP.linear(), nz.Epsilon(), nz.Timestep(1000)),
        (DDIM(50, 1e-3, 0.1), nz.DiscreteVP.linear(50, 1e-3, 0.1), nz.Epsilon(), nz.Timestep(50)),
        (DDIM(prediction_type="sample"), nz.DiscreteVP.linear(), nz.Denoised(), nz.Timestep(1000)),
        (DDIM(prediction_type="v_prediction"), nz.DiscreteVP.linear(), nz.Velocity(), nz.Timestep(1000)),
        (DDIM(beta_schedule="squaredcos_cap_v2"), nz.DiscreteVP.cosine(), nz.Epsilon(), nz.Timestep(1000)),
        (
            diffusers.HeunDiscreteScheduler(),
            nz.DiscreteVP.linear(1000, 0.00085, 0.012),
            nz.Epsilon(),
            nz.Timestep(1000),
        ),
        (
            DDIM(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
            nz.DiscreteVP.quadratic(1000, 0.00085, 0.012),
            nz.Epsilon(),
            nz.Timestep(1000),
        ),
        (
            DDIM(3, trained_betas=[0.1, 0.2, 0.5]),
            nz.DiscreteVP.from_betas([0.1, 0.2, 0.5]),
            nz.Epsilon(),
            nz.Timestep(3),
        ),
        (
            DDIM(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
            nz.ZeroTerminalSNR(nz.DiscreteVP.linear()),
            nz.Velocity(),
            nz.Timestep(1000),
        ),
        (FLOW(shift=3.0), nz.StraightPath(), nz.Flow(), nz.Time(1000.0)),
        (
            diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
            nz.StraightPath(),
            nz.Flow(),
            nz.Time(1000.0),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_config_becomes_axes(made, process, parameterization, conditioning):
    """Prediction type, betas and their rescaling, flow matching, and the defaults of each class of scheduler."""
    found = imported(made)
    assert (found.process, found.parameterization, found.conditioning) == (process, parameterization, conditioning)


def test_what_a_model_predicts_is_read_as_its_scheduler_reads_it():
    """x0 of the Denoiser is diffusers' pred_original_sample, for each prediction type, to a relative 1e-5."""
    x = torch.randn(2, *IMAGE, generator=torch.Generator().manual_seed(0))
    for kind in ("epsilon", "sample", "v_prediction"):
        scheduler = DDIM(prediction_type=kind, clip_sample=False)
        scheduler.set_timesteps(1000)
        denoiser = imported(scheduler)
        with torch.no_grad():
            F = denoiser.model(x, 300).sample
            x0, _ = denoiser(x, 0.301)
        torch.testing.assert_close(x0, scheduler.step(F, 300, x).pred_original_sample, rtol=1e-5, atol=1e-5)


# ---- samples


def close(found, expected):
    """To a relative 1e-4 of the largest number."""
    size = expected.abs().max().item()
    assert torch.isfinite(expected).all()
    assert (found - expected).abs().max().item() < 1e-4 * size


def noise():
    return torch.stack([torch.randn(IMAGE, generator=torch.Generator().manual_seed(seed)) for seed in SEEDS])


@torch.no_grad()
def loop(model, scheduler, x, steps, mu=None):
    """The usual loop over a scheduler."""
    scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
    for t in scheduler.timesteps:
        F = model(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t).sample
        x = scheduler.step(F, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_pipeline(steps, kind):
    """DDIM() on the scheduler's own trailing grid gives the images of DDIMPipeline from the same seeds, one generator an image."""
    config = {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": kind}
    denoiser = imported(DDIM(**config))
    pipeline = diffusers.DDIMPipeline(denoiser.model, DDIM(**config))
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    images = pipeline(
        len(SEEDS), generators, num_inference_steps=steps, use_clipped_model_output=False, output_type="np"
    ).images
    found = nz.sample(from_diffusers(pipeline), IMAGE, solver=nz.DDIM(), grid=denoiser.grid(), steps=steps, seeds=SEEDS)
    shown = (found / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    if kind == "v_prediction":  # with random weights eps leads far out of the range that a pipeline shows
        assert (shown - torch.from_numpy(images)).abs().max() < 1e-4
        assert ((shown > 0) & (shown < 1)).float().mean() > 0.5
    close(found, loop(denoiser.model, DDIM(**config), noise(), steps))


def test_ddpm_pipeline():
    """Ancestral on all nodes is DDPMScheduler with the noise of one generator for each image, to a relative 1e-4 of 40 timesteps."""
    config = {"num_train_timesteps": 40, "beta_end": 0.2, "clip_sample": False, "variance_type": "fixed_large"}
    denoiser, scheduler = imported(DDPM(**config)), DDPM(**config)
    scheduler.set_timesteps(40)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    x = torch.stack([torch.randn(IMAGE, generator=generator) for generator in generators])
    x = x * denoiser.process(torch.tensor(1.0)).sigma  # sample's first noise has the end's level
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser.model(x, t).sample, t, x, generator=generators).prev_sample
    grid = denoiser.grid()
    found = nz.sample(denoiser, IMAGE, solver=nz.Ancestral("upper"), grid=grid, steps=40, seeds=SEEDS)
    close(found, x)


@pytest.mark.parametrize(
    ("name", "solver", "more"),
    [
        ("EulerDiscreteScheduler", nz.Euler(), {}),
        ("HeunDiscreteScheduler", nz.Heun(), {"beta_start": 1e-4, "beta_end": 0.02}),
    ],
)
def test_euler_and_heun(name, solver, more):
    """Rescaled to sigma = t, on the levels of the scheduler's own trailing grid, from the same noise."""

    class Levels:
        def __call__(self, steps, process):
            return sigmas

    made = getattr(diffusers, name)
    denoiser = imported(made(timestep_spacing="trailing", **more))
    level = denoiser.process(denoiser.grid()(20, denoiser.process))
    sigmas = level.sigma / level.alpha
    seen = nz.Rescaled(denoiser, nz.KarrasVE(end=sigmas[0].item()))
    found = nz.sample(seen, IMAGE, solver=solver, grid=Levels(), steps=20, seeds=SEEDS)
    close(found, loop(denoiser.model, made(timestep_spacing="trailing", **more), noise() * sigmas[0].item(), 20))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_dpm_solver(kind):
    """DPMSolverPP() on the scheduler's own grid is DPMSolverMultistepScheduler."""
    config = {"timestep_spacing": "trailing", "prediction_type": kind}
    made = diffusers.DPMSolverMultistepScheduler
    denoiser = imported(made(**config))
    found = nz.sample(denoiser, IMAGE, solver=nz.DPMSolverPP(), grid=denoiser.grid(), steps=20, seeds=SEEDS)
    close(found, loop(denoiser.model, made(**config), noise(), 20))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_flow_matching_euler(name):
    """Euler() on the scheduler's shifted grid is FlowMatchEulerDiscreteScheduler as its pipeline calls it: constant shift, or one that grows with the image."""
    case = CASES[name]
    denoiser, scheduler = case(), case.scheduler()
    grid = denoiser.grid(case.shape)
    if name == "flux":
        mu = 0.5 + (16 - 256) * (1.15 - 0.5) / (4096 - 256)  # 16 patches of 2 x 2
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 8, 8).tolist(), mu=mu)
    else:
        scheduler.set_timesteps(8)
    times = grid(8, denoiser.process)
    assert times.float().tolist() == pytest.approx(scheduler.sigmas.tolist(), rel=1e-6)
    x = torch.stack([torch.randn(case.shape, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)])
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(denoiser.network(x, t.expand(2), **case.condition), t, x).prev_sample
    found = nz.sample(
        denoiser, case.shape, solver=nz.Euler(), grid=grid, steps=8, seeds=[3, 4], condition=case.condition
    )
    close(found, x)


def test_score_sde_ve():
    """A Fourier UNet's score s gives eps = -sigma s, so that x0 = x + sigma^2 s; sampled down the scheduler's noise levels."""
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    denoiser = imported(scheduler, time_embedding_type="fourier")
    x = 4 * noise()
    for sigma in (0.3, 4.0):
        with torch.no_grad():
            score = denoiser.model(x, torch.full((3,), sigma)).sample
            x0, _ = denoiser(x, sigma)
        torch.testing.assert_close(x0, x + sigma**2 * score, rtol=1e-4, atol=1e-4)
    grid = denoiser.grid()
    scheduler.set_sigmas(30)
    scheduler.set_timesteps(30)
    expected = [0.01 * (50 / 0.01) ** (i / 29) for i in reversed(range(30))]
    assert grid(30, denoiser.process).tolist() == pytest.approx([*expected, 0.0])
    found = nz.sample(denoiser, IMAGE, solver=nz.Ancestral(), grid=grid, steps=30, seeds=SEEDS)
    assert bool(found.isfinite().all())
    with pytest.raises(ArgumentError, match="LogSigma at sigma = 0 is infinite"):
        denoiser(x, 0.0)


def test_a_learned_table_takes_integers_only():
    """A node is a row of the table, exactly; a time between nodes, or t = 0, is refused."""
    denoiser = imported(DDIM(), time_embedding_type="learned", num_train_timesteps=1000)
    with torch.no_grad():
        assert torch.equal(denoiser.output(noise(), 0.5)[0], denoiser.model(noise(), 499).sample)
    for t, told in ((0.0005, "-0.5"), (0.0, "-1"), (0.4995, "498.5")):
        with pytest.raises(
            CheckpointError, match=f"timestep {told} is not in this model's table of timesteps 0 .. 999"
        ):
            denoiser(noise(), t)


# ---- grids


@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("linspace", 0), ("leading", 0), ("leading", 1)])
@pytest.mark.parametrize("steps", [7, 20, 50])
def test_the_grid_is_the_schedulers(spacing, offset, steps):
    """It visits the timesteps of DDIMScheduler with the same spacing and offset, then 0."""
    scheduler = DDIM(timestep_spacing=spacing, steps_offset=offset)
    denoiser = imported(scheduler)
    scheduler.set_timesteps(steps)
    times = denoiser.grid()(steps, denoiser.process)
    assert (times[:-1] * 1000 - 1).round().tolist() == scheduler.timesteps.tolist()[:steps] and times[-1] == 0


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0])
def test_a_shift_multiplies_sigma_over_alpha(shift):
    """The shifted grid's noise-to-signal ratios are `shift` times those of the even one, and shifts multiply."""
    even, moved = (ShiftedGrid(s)(9, nz.StraightPath())[1:] for s in (1.0, shift))
    torch.testing.assert_close(moved / (1 - moved), shift * even / (1 - even))
    assert ShiftedGrid(shift)(9, nz.StraightPath())[0] == 1


@pytest.mark.parametrize("grid", [ShiftedGrid(), ShiftedGrid(3.0, 0.01), OffsetGrid(nz.TimestepGrid("leading"), 2)])
def test_grids_survive_json(grid):
    """decode(encode(x)) == x."""
    assert decode(json.loads(json.dumps(encode(grid)))) == grid


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ShiftedGrid(0.0), "positive shift"),
        (lambda: ShiftedGrid(1.0, 1.0), "inside"),
        (lambda: ShiftedGrid()(3, nz.KarrasVE()), "StraightPath"),
        (lambda: ShiftedGrid()(0, nz.StraightPath()), "at least 1 step"),
        (lambda: OffsetGrid(nz.TimestepGrid())(5, nz.DiscreteVP.linear()), "beyond the 1000 timesteps"),
        (lambda: OffsetGrid(nz.UniformGrid())(5, nz.LinearVP()), "has none"),
        (lambda: CASES["flux"]().grid(), "give the shape"),
        (lambda: imported(diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)).grid(), "use_karras_sigmas"),
    ],
)
def test_wrong_grids_are_refused(make, message):
    """A grid that cannot be is an ArgumentError that says why."""
    with pytest.raises(ArgumentError, match=message):
        make()


# ---- what is refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: (unet(), DDIM(rescale_betas_zero_snr=True)), "epsilon prediction with zero terminal SNR"),
        (lambda: (unet(), DDIM(prediction_type="else")), "unknown prediction_type 'else'"),
        (lambda: (unet(), DDPM(beta_schedule="sigmoid")), "unknown beta_schedule 'sigmoid'"),
        (lambda: (unet(), DDPM(trained_betas=[0.1, 0.2])), "2 trained_betas for 1000 timesteps"),
        (lambda: (unet(), diffusers.EDMEulerScheduler()), "EDMEulerScheduler is no scheduler that nearzero knows; known: DDPM"),
        (lambda: (unet(), FLOW(invert_sigmas=True)), "turns time around"),
        (lambda: (unet(), diffusers.UniPCMultistepScheduler(use_flow_sigmas=True)), "go together"),
        (
            lambda: (unet(), diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", timestep_type="continuous")),
            "only timesteps are read",
        ),
        (lambda: (unet(), None), "a scheduler of diffusers with its config is needed"),
        (lambda: (torch.nn.Linear(1, 1), DDIM()), "Linear is no model that nearzero knows; known: UNet2DModel"),
        (lambda: (unet(time_embedding_type="fourier"), DDIM()), "told a noise level"),
        (lambda: (unet(), diffusers.ScoreSdeVeScheduler()), "told timesteps"),
        (lambda: "google/ddpm-cifar10-32", "is no folder; for a repository of the hub say download=True"),
        (lambda: 3, "expected a pipeline"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_a_checkpoint_error(source, message):
    """Exit code 4, and a sentence that names the value and the remedy or what is known."""
    with pytest.raises(CheckpointError, match=message) as caught:
        from_diffusers(source())
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    """A DDPM pipeline's folder, as diffusers writes it."""
    write(tmp_path, CASES["ddpm"])
    return tmp_path


def edit(path, **changes):
    """A JSON file with some keys changed."""
    found = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**found, **changes}), encoding="utf-8")


def pickled(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.unlink()
    weights.with_suffix(".bin").write_bytes(b"\x80\x04cos\nsystem\n")


def shards(folder, name):
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def truncated(folder):
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def incomplete(folder):
    from safetensors.torch import load_file, save_file

    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("conv_in.weight")
    save_file(tensors, weights)


INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
DAMAGE = {
    "no index": (lambda at: (at / INDEX).unlink(), "model_index.json is missing; give the folder of a whole pipeline"),
    "no json": (lambda at: (at / INDEX).write_text("{"), "is no valid JSON; give the folder"),
    "list": (lambda at: (at / INDEX).write_text("[]"), "holds no JSON object"),
    "pipeline": (lambda at: edit(at / INDEX, _class_name="WanPipeline"), "WanPipeline is no pipeline .* known: DDPMPipeline"),
    "custom pipeline": (lambda at: edit(at / INDEX, _class_name=["code", "Mine"]), "is no pipeline"),
    "foreign model": (lambda at: edit(at / INDEX, unet=["os", "system"]), "names .'os', 'system'. as unet"),
    "other model": (lambda at: edit(at / INDEX, unet=["diffusers", "UNet3DConditionModel"]), "as unet; known, of diffusers: UNet2DModel"),
    "no model": (lambda at: edit(at / INDEX, unet=None), "names None as unet"),
    "foreign scheduler": (lambda at: edit(at / INDEX, scheduler=["code", "Mine"]), "as scheduler; known"),
    "foreign config": (lambda at: edit(at / UNET, _class_name="Mine"), "is of a Mine, model_index.json says UNet2DModel"),
    "listed config": (lambda at: edit(at / UNET, _class_name=["code", "Mine"]), "says UNet2DModel"),
    "listed shards": (lambda at: shards(at, ["x"]), "no safetensors file beside it"),
    "nested betas": (lambda at: edit(at / SCHEDULER, trained_betas=[[0.1]] * 1000), "config is incomplete or wrong"),
    "listed prediction": (lambda at: edit(at / SCHEDULER, prediction_type=["epsilon"]), "config is incomplete or wrong"),
    "no config": (lambda at: (at / UNET).unlink(), "config.json is missing; save the model anew"),
    "no scheduler": (lambda at: shutil.rmtree(at / "scheduler"), "scheduler_config.json is missing; save the pipeline's scheduler"),
    "bad scheduler": (lambda at: edit(at / SCHEDULER, beta_schedule="mine"), "cannot make this DDPMScheduler"),
    "steps": (lambda at: edit(at / SCHEDULER, num_train_timesteps="ten"), "num_train_timesteps is 'ten'"),
    "pickled": (pickled, "diffusion_pytorch_model.bin is a pickle, which can run code .* nearzero convert"),
    "no weights": (lambda at: (at / "unet/diffusion_pytorch_model.safetensors").unlink(), "holds no diffusion_pytorch_model"),
    "shard outside": (lambda at: shards(at, "../x.safetensors"), "names '../x.safetensors', no safetensors file beside it"),
    "pickled shard": (lambda at: shards(at, "x.bin"), "names 'x.bin'"),
    "truncated": (truncated, "cannot load this UNet2DModel"),
    "incomplete": (incomplete, "1 weights are missing, conv_in.weight first"),
    "other sizes": (lambda at: edit(at / UNET, block_out_channels=[8, 8]), "cannot load this UNet2DModel"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_or_foreign_folder_is_refused(saved, damage, monkeypatch):
    """Exit code 4 and one line; nothing is unpickled and no pipeline is made on the way."""

    def never(*_, **__):
        raise AssertionError("something ran")

    monkeypatch.setattr(torch, "load", never)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", never)
    change, message = DAMAGE[damage]
    change(saved)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_diffusers(saved)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)


def test_the_first_layout_and_old_names_are_read(saved, tmp_path_factory):
    """All files in one folder, as the first pipelines had them; and a DiT saved as Transformer2DModel."""
    for name in (UNET, SCHEDULER, "unet/diffusion_pytorch_model.safetensors"):
        (saved / name).rename(saved / name.split("/")[1])
    for name in ("unet", "scheduler"):
        (saved / name).rmdir()
    assert type(from_diffusers(saved).model).__name__ == "UNet2DModel"
    old = tmp_path_factory.mktemp("old")
    part = write(old, CASES["dit"])
    edit(part / "config.json", _class_name="Transformer2DModel")
    edit(old / INDEX, transformer=["diffusers", "Transformer2DModel"])
    assert type(from_diffusers(old).model).__name__ == "DiTTransformer2DModel"
    edit(part / "config.json", norm_type="layer_norm")
    with pytest.raises(CheckpointError, match="Transformer2DModel is no model that nearzero knows"):
        from_diffusers(old)


def test_a_repository_is_fetched_only_when_asked(saved, monkeypatch):
    """With download=True, and only so, the hub is asked, for JSON and safetensors alone."""
    import huggingface_hub

    asked = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(saved)
    )
    with pytest.raises(CheckpointError, match="is no folder"):
        from_diffusers("someone/something")
    assert asked == []
    found = from_diffusers("someone/something", download=True)
    ((name, options),) = asked
    assert name == "someone/something" and found.schedule.name == "DDPMScheduler"
    assert {pattern.rpartition(".")[2] for pattern in options["allow_patterns"]} == {"json", "safetensors"}


def test_an_unknown_pipeline_is_refused(monkeypatch):
    """A pipeline of another class is not taken for one of the known, whatever its components; one derived from a known class is."""
    model, scheduler = unet(), DDIM()
    with pytest.raises(CheckpointError, match="Other is no pipeline that nearzero knows; known: DDPMPipeline"):
        from_diffusers(type("Other", (), {"components": {"unet": model, "scheduler": scheduler}})())
    derived = type("Mine", (diffusers.DDIMPipeline,), {})(model, scheduler)
    assert from_diffusers(derived).model is model


def test_every_pipeline_of_the_table_exists():
    """The closed table of pipelines names classes of diffusers."""
    assert [name for name in PIPELINES if not hasattr(diffusers, name)] == []
