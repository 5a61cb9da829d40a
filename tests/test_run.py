"""The run folder: what it says comes back, what is damaged is refused, and reading it executes nothing."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import nearzero as nz
from conftest import pictures, tiny_recipe, tree
from nearzero import recipes
from nearzero.codec import fitted
from nearzero.errors import CheckpointError, NearzeroError
from nearzero.manifest import write_manifest
from nearzero.run import SCHEMA
from nearzero.training.loop import train


def edit(folder, change):
    """Lets `change` work on the values of run.json."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(change(record) or record))


# ---- what it says comes back


def test_a_run_comes_back(trained):
    """Run.load returns what train returned, and knows recipe, seed, data and origin."""
    run = nz.Run.load(str(trained.path))
    assert run == trained
    assert (run.recipe, run.seed, run.step) == (tiny_recipe(), 0, 6)
    assert {name: run.data[name] for name in pictures().describe()} == pictures().describe()
    assert run.provenance["nearzero"] == nz.__version__ and run.provenance["torch"] == torch.__version__


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("preset", recipes.PRESETS)
def test_every_recipe_comes_back_from_disk(tmp_path, name, preset):
    """A run of any recipe and preset, written and loaded, has the same recipe, unprintable seeds and names included."""
    recipe = recipes.PRESETS[preset](recipes.named(name), 32, 3)
    recipe = replace(recipe, codec=fitted(recipe.codec, pictures(1, 32, 3).pixels))
    run = nz.Run.create(tmp_path, recipe, {"name": "Zürich \u2028", "count": 1}, 2**32 - 1)
    assert nz.Run.load(tmp_path) == run


def test_loading_and_sampling_write_nothing(run_folder):
    """Loading a run, building its denoiser and sampling leave the folder as it is."""
    before = tree(run_folder)
    nz.Run.load(run_folder).sample([0], steps=2)
    assert tree(run_folder) == before


def test_the_newest_checkpoint_counts(run_folder):
    """checkpoint() is the highest whole number, whatever else a crash left beside it; what is damaged is named."""
    run = nz.Run.load(run_folder)
    whole = run.checkpoint()
    (run.path / "checkpoints/.tmp-000000012-abc").mkdir()
    (run.path / "checkpoints/notes").write_text("mine")
    assert run.checkpoint() == whole
    (run.path / "checkpoints/000000012").mkdir()
    with pytest.warns(UserWarning, match="left out a damaged checkpoint: .*000000012.*; using 000000006"):
        assert run.checkpoint() == whole
    (run.path / "checkpoints/000000012/state.json").write_text('{"step": 12}')
    write_manifest(run.path / "checkpoints/000000012", {"step": 12})
    assert run.step == 12


# ---- weights


def test_averaged_and_raw_weights(trained):
    """denoiser() holds exactly what ema.safetensors holds, denoiser(ema=False) what weights.safetensors holds; neither is in training."""
    for ema, name in ((True, "ema"), (False, "weights")):
        denoiser = trained.denoiser(ema=ema)
        saved = load_file(trained.checkpoint() / f"{name}.safetensors")
        state = denoiser.network.state_dict()
        assert state.keys() == saved.keys() and all(torch.equal(state[key], saved[key]) for key in saved)
        assert not denoiser.training and not denoiser.network.training


def test_sampling_uses_the_average_unless_told(trained):
    """sample() is sample() of the averaged denoiser, bit for bit, and differs from that of the raw weights."""
    seeds = range(3)
    x = trained.sample(seeds)
    assert torch.equal(x, trained.sample(seeds, denoiser=trained.denoiser()))
    assert not torch.equal(x, trained.sample(seeds, denoiser=trained.denoiser(ema=False)))


def test_loading_leaves_torchs_generator_alone(trained):
    """Loading and sampling neither read nor move torch's global generator."""
    images = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        images.append(nz.Run.load(trained.path).sample([5]))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*images)


# ---- samples


def test_an_image_depends_on_its_seed(trained):
    """At equal batch size the image of a seed is the same bits wherever it stands; another seed is another image."""
    a = trained.sample([3, 1, 2, 7])
    b = trained.sample([9, 3, 7, 4])
    assert torch.equal(a[0], b[1]) and torch.equal(a[3], b[2])
    assert not torch.equal(a[0], a[1])


def test_the_batch_changes_an_image_by_rounding_only(trained):
    """In batches of 1, 2, 3 or 5 each image is the same within one grey level."""
    whole = trained.sample(range(5))
    for size in (1, 2, 3):
        assert (trained.sample(range(5), batch=size) - whole).abs().max() < 1


def test_sample_is_the_recipe_behind_its_codec(trained):
    """sample() is the codec's decoding of nearzero.sample with the recipe's solver, grid and steps, or with those given."""
    recipe, denoiser = trained.recipe, trained.denoiser()
    shape = (1, 8, 8)
    plain = nz.sample(
        denoiser, shape, solver=recipe.solver, grid=recipe.grid, steps=recipe.steps, seeds=[4], dtype=torch.float32
    )
    assert torch.equal(trained.sample([4]), 127.5 * (plain + 1))
    other = {"solver": nz.Ancestral("lower"), "grid": nz.UniformGrid(), "steps": 7}
    asked = nz.sample(denoiser, shape, seeds=[4], dtype=torch.float32, **other)
    assert torch.equal(trained.sample([4], **other), 127.5 * (asked + 1))
    assert not torch.equal(plain, asked)


def test_the_default_type_of_torch_does_not_matter(trained):
    """Under a default dtype of float64 the samples are the same float32 bits."""
    expected = trained.sample([0])
    torch.set_default_dtype(torch.float64)
    try:
        again = trained.sample([0])
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.dtype == torch.float32 and torch.equal(again, expected)


# ---- what is damaged is refused


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"3", b'"run"', b"\x80\x05", b"{}"])
def test_a_damaged_record_is_refused(run_folder, content):
    """A run.json that is no record raises CheckpointError, one line with its path."""
    (run_folder / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="run.json") as caught:
        nz.Run.load(run_folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", [None, 0, -1, "1", 1.5, [1]])
def test_a_record_without_a_version_is_refused(run_folder, version):
    """A schema version that is missing or no positive integer is not nearzero's."""
    edit(
        run_folder,
        lambda record: (
            record.update(schema_version=version) if version is not None else record.pop("schema_version") and None
        ),
    )
    with pytest.raises(CheckpointError, match="no schema version; it was not written by nearzero"):
        nz.Run.load(run_folder)


def test_a_newer_version_is_refused_first(run_folder):
    """A newer schema asks for an upgrade, before anything else in the file is read."""
    edit(run_folder, lambda record: {"schema_version": SCHEMA + 1, "recipe": {"class": "FromTheFuture"}})
    with pytest.raises(
        CheckpointError, match=f"schema version {SCHEMA + 1}, this nearzero reads up to {SCHEMA}; upgrade nearzero"
    ):
        nz.Run.load(run_folder)


@pytest.mark.parametrize("field", ["recipe", "seed", "data"])
def test_an_incomplete_record_is_refused(run_folder, field):
    """Without recipe, seed or data a record is refused."""
    edit(
        run_folder,
        lambda record: record.pop(field) and None if record[field] else {k: v for k, v in record.items() if k != field},
    )
    with pytest.raises(CheckpointError, match="run.json|recipe"):
        nz.Run.load(run_folder)


def places(value, path=()):
    """The path of every value inside JSON."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def damaged(record, path, value):
    record = copy.deepcopy(record)
    inside = record
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return record


@pytest.mark.parametrize(
    "value", [None, "x", -1, 1.5, True, [], [0], {}, {"class": "Pixels"}, {"class": "EMA"}], ids=repr
)
def test_any_damage_to_a_recipe_is_an_error_of_one_line(trained, tmp_path, value):
    """Whatever value of a saved recipe is replaced, loading and sampling work or raise CheckpointError of one line, nothing else."""
    record = json.loads((trained.path / "run.json").read_text())
    (tmp_path / "checkpoints").symlink_to(trained.path / "checkpoints")
    wrong = []
    for path in places(record["recipe"]):
        if not path:
            continue
        (tmp_path / "run.json").write_text(json.dumps(damaged(record, ("recipe", *path), value)))
        try:
            run = nz.Run.load(tmp_path)
        except CheckpointError as error:
            wrong += [(path, "more than a line")] if "\n" in str(error) else []
            continue
        except Exception as error:
            wrong.append((path, "load", repr(error)))
            continue
        try:
            replace(
                run, recipe=replace(run.recipe, steps=1) if isinstance(run.recipe.steps, int) else run.recipe
            ).sample([0])
        except NearzeroError:
            pass
        except Exception as error:
            wrong.append((path, "sample", repr(error)))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "name",
    ["os.system", "posix.system", "builtins.eval", "torch.load", "Module", "", None, 3, ["EMA"], {"class": "EMA"}],
)
def test_a_class_that_is_not_registered_executes_nothing(run_folder, tmp_path, name):
    """A file that names another class is refused, and what it asks for does not happen."""
    canary = tmp_path / "canary"
    evil = {"class": name, "command": f"touch {canary}", "args": [f"touch {canary}"]}
    for field in ("recipe", "process", "network"):
        edit(
            run_folder,
            lambda record, field=field: (
                record["recipe"].update({field: evil}) if field != "recipe" else {**record, "recipe": evil}
            ),
        )
        with pytest.raises(CheckpointError, match="unknown class"):
            nz.Run.load(run_folder)
    assert not canary.exists()


@pytest.mark.parametrize("extra", ["_target_", "auto_map", "trust_remote_code", "__class__", "__reduce__"])
def test_a_field_that_a_class_does_not_have_is_refused(run_folder, extra):
    """Keys by which other tools are made to run code are unknown fields here."""
    edit(run_folder, lambda record: record["recipe"]["network"].update({extra: "os.system"}))
    with pytest.raises(CheckpointError, match=f"unknown field '{extra}' of UNet"):
        nz.Run.load(run_folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "huge header", "pickle", "gone", "a folder"])
@pytest.mark.parametrize("ema", [True, False])
def test_damaged_weights_are_refused(run_folder, ema, damage):
    """Weights that are cut short, empty, pickled, missing or lie about their header raise CheckpointError with their path, in one line."""
    run = nz.Run.load(run_folder)
    path = run.checkpoint() / ("ema.safetensors" if ema else "weights.safetensors")
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "pickle":
        torch.save({"x": torch.zeros(1)}, path)
    elif damage != "gone":
        path.write_bytes(
            {"cut": content[:-100], "empty": b"", "huge header": b"\xff" * 7 + b"\x7f" + content[8:]}[damage]
        )
    with pytest.raises(CheckpointError, match=f"{path.name}.*; restore the file or train again") as caught:
        run.denoiser(ema=ema)
    assert "\n" not in str(caught.value)


def change_shape(tensors):
    tensors["unet.conv_in.weight"] = torch.zeros(16, 3, 3, 3)


def drop_one(tensors):
    del tensors["unet.conv_in.weight"]


def add_one(tensors):
    tensors["unet.more"] = torch.zeros(1)


@pytest.mark.parametrize("change", [change_shape, drop_one, add_one])
def test_weights_of_another_network_are_refused(run_folder, change):
    """A wrong shape, a missing and an additional tensor raise CheckpointError that names the file and the tensor, in one line."""
    path = nz.Run.load(run_folder).checkpoint() / "ema.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    write_manifest(path.parent, {"step": 6})
    name = "unet.more" if change is add_one else "unet.conv_in.weight"
    with pytest.raises(CheckpointError, match=f"ema.safetensors does not fit the recipe's network.*{name}") as caught:
        nz.Run.load(run_folder).denoiser()
    assert "\n" not in str(caught.value)


def test_a_missing_run_is_refused(tmp_path, run_folder):
    """A path that does not exist, a folder or file that is no run: CheckpointError with the path and the command that makes one."""
    (tmp_path / "file").write_text("")
    for path, what in (
        (tmp_path / "none", "does not exist"),
        (tmp_path, "is no run folder"),
        (tmp_path / "file", "is no run folder"),
    ):
        with pytest.raises(CheckpointError, match=f"{path} {what}.*nearzero train"):
            nz.Run.load(path)


def test_a_run_without_checkpoint_cannot_sample(tmp_path):
    """Before its first checkpoint a run loads, is at step 0, and sampling says how to train it."""
    run = nz.Run.create(tmp_path, tiny_recipe(), pictures().describe(), 0)
    assert (run.checkpoint(), run.step) == (None, 0)
    with pytest.raises(CheckpointError, match="has no checkpoint yet; train it with: nearzero train --resume --out"):
        run.sample([0])


def test_a_run_without_checkpoint_can_be_resumed(tmp_path, trained):
    """A run that was killed before its first checkpoint starts at step 0 on resume."""
    nz.Run.create(tmp_path, tiny_recipe(), pictures().describe(), 0)
    run = train(tiny_recipe(), pictures(), tmp_path, resume=True)
    assert tree(run.checkpoint()) == tree(trained.checkpoint())


def test_a_pinned_run_stays_at_its_checkpoint(tmp_path):
    """What training adds later changes neither step nor weights of a pinned run, and both of one that is not."""
    recipe = tiny_recipe(steps=2)
    run = train(recipe, pictures(), tmp_path / "run")
    pinned, before = run.pinned(), (run.checkpoint() / "ema.safetensors").read_bytes()
    weights = [value.clone() for value in pinned.denoiser().parameters()]
    kept = tmp_path / "kept"
    shutil.copytree(run.checkpoint(), kept)
    longer = replace(recipe, training=replace(recipe.training, steps=4))
    train(longer, pictures(), tmp_path / "run", resume=True)
    shutil.copytree(kept, run.path / "checkpoints" / "000000002", dirs_exist_ok=True)
    assert (pinned.step, run.step) == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(weights, pinned.denoiser().parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights, run.denoiser().parameters(), strict=True))
    assert (pinned.checkpoint() / "ema.safetensors").read_bytes() == before
