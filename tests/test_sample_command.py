"""nearzero sample: an image is a function of its seed and the settings, whatever happens on the way."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import nearzero as nz
from conftest import pictures, tiny_recipe, tree
from nearzero.cli import choices, run
from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, OutOfMemoryError
from nearzero.files import contact_sheet, digest, to_bytes
from nearzero.guidance import Guided
from nearzero.production import Production, produce
from nearzero.production.folder import Folder
from nearzero.training.loop import train

COUNT = 7


def read(path):
    """A grey PNG as a tensor (1, H, W)."""
    return torch.from_numpy(np.asarray(Image.open(path)).copy())[None]


def images(out):
    """The PNG files named by seeds."""
    return {name: content for name, content in tree(out).items() if name[:6].isdigit()}


def record(out):
    return json.loads((out / "samples.json").read_text())


def draw(trained, out, *arguments):
    """The command's exit code; 7 images of 3 steps unless the arguments say otherwise."""
    chosen = [] if "--seeds" in arguments or "-n" in arguments else ["-n", str(COUNT)]
    steps = [] if "--nfe" in arguments or "--steps" in arguments else ["--steps", "3"]
    return run(["sample", str(trained.path), "--out", str(out), *chosen, *steps, "--device", "cpu", *arguments])


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory):
    """Seven images, drawn at once. Read only."""
    out = tmp_path_factory.mktemp("whole") / "samples"
    assert draw(trained, out) == 0
    return out


@pytest.fixture(scope="module")
def weaker(tmp_path_factory):
    """A run of the same recipe, trained for two steps from another seed."""
    return train(tiny_recipe(steps=2), pictures(), tmp_path_factory.mktemp("weaker") / "run", seed=5)


@pytest.fixture
def drawn(monkeypatch):
    """The seeds of every call of `sample`; one longer than `drawn.limit` runs out of memory."""

    class Calls(list):
        limit, error = 10**9, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    calls = Calls()

    def sample(*args, seeds, **how):
        calls.append(list(seeds))
        if len(seeds) > calls.limit:
            raise calls.error
        return nz.sample(*args, seeds=seeds, **how)

    monkeypatch.setattr("nearzero.production.job.sample", sample)
    return calls


@pytest.fixture
def asked(monkeypatch):
    """How many examples networks were asked about."""
    counts, ask = [], Denoiser.ask

    def counting(self, x_in, *args, **kwargs):
        if x_in.ndim == 4 and not isinstance(self, Guided):  # images; a run is tried on a number when it is read
            counts.append(len(x_in))
        return ask(self, x_in, *args, **kwargs)

    monkeypatch.setattr(Denoiser, "ask", counting)
    return counts


# ---- a function of the seed


@pytest.mark.parametrize("batch", ["1", "2", "3", "100", "auto"])
@pytest.mark.parametrize("seeds", ["0-6", "6,5,4,3,2,1,0", "3,0-2,4-6"])
def test_batches_and_order_change_no_byte(trained, whole, tmp_path, batch, seeds):
    """For any batch and any order of the seeds the same PNG files come out, and the same grid."""
    assert draw(trained, tmp_path / "out", "--batch", batch, "--seeds", seeds) == 0
    assert images(tmp_path / "out") == images(whole)
    assert (tmp_path / "out/grid.png").read_bytes() == (whole / "grid.png").read_bytes()


@pytest.mark.parametrize("order", [(0,), (0, 1), (1, 0), (2, 0, 1), (7, 8, 0, 1, 2, 3, 4, 5, 6)], ids=str)
def test_processes_change_no_byte(trained, whole, tmp_path, monkeypatch, capsys, order):
    """Each of several processes draws every so-many-th seed; the last to end merges what they recorded and draws the grid."""
    monkeypatch.setenv("WORLD_SIZE", str(len(order)))
    for place, rank in enumerate(order):
        monkeypatch.setenv("RANK", str(rank))
        assert draw(trained, tmp_path, "--json") == 0
        made, last = json.loads(capsys.readouterr().out), place == len(order) - 1
        mine = list(range(COUNT))[rank :: len(order)]
        assert made["seeds"] == mine and made["drawn"] == len(mine)
        done = {seed for one in order[: place + 1] for seed in range(COUNT)[one :: len(order)]}
        assert made["whole"] is (len(done) == COUNT)
        assert set(images(tmp_path)) == {f"{seed:06d}.png" for seed in done}
        assert (tmp_path / "grid.png").exists() is (tmp_path / "samples.json").exists() is (len(done) == COUNT)
        assert last <= made["whole"]
    assert tree(tmp_path).keys() == tree(whole).keys()
    assert images(tmp_path) == images(whole) and record(tmp_path)["images"] == record(whole)["images"]
    assert record(tmp_path)["settings"] == record(whole)["settings"]


def test_a_later_call_merges(trained, whole, tmp_path, monkeypatch, drawn):
    """When one of three processes never came, a plain call, or two others, draw its seeds alone and merge the records."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in "20":
        monkeypatch.setenv("RANK", rank)
        assert draw(trained, tmp_path / "three") == 0
    shutil.copytree(tmp_path / "three", tmp_path / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    drawn.clear()
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert draw(trained, tmp_path / "two") == 0
    monkeypatch.delenv("WORLD_SIZE")
    assert draw(trained, tmp_path / "three") == 0
    assert drawn == [[4], [1], [1, 4]]
    for out in (tmp_path / "two", tmp_path / "three"):
        assert tree(out).keys() == tree(whole).keys() and images(out) == images(whole)
        assert record(out)["images"] == record(whole)["images"]


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("x", "2"), ("0", "0"), ("-1", "2")])
def test_processes_that_cannot_be(trained, tmp_path, monkeypatch, capsys, rank, world):
    """A rank that is none of the processes is refused before anything is read."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    assert draw(trained, tmp_path / "out") == 2
    assert "do not name a process" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- cut short


def test_cut_short_anywhere(trained, whole, tmp_path, faults, drawn, capsys):
    """Stopped at any change of a file, a call leaves whole files under final names alone; the next draws what is not recorded."""
    reference, at, ended = images(whole), 1, False
    while not ended:
        out = tmp_path / str(at)
        faults.arm("replace", at, KeyboardInterrupt())
        code = draw(trained, out, "--batch", "2")
        ended = code == 0
        faults.disarm()
        left = tree(out) if out.exists() else {}
        assert not [name for name in left if name.startswith(".")] and code in (0, 130)
        assert {name: reference[name] for name in images(out)} == images(out)
        listed = record(out)["images"] if (out / "samples.json").exists() else {}
        assert {f"{int(seed):06d}.png" for seed in listed} <= set(left)
        drawn.clear()
        capsys.readouterr()
        assert draw(trained, out) == 0
        err = capsys.readouterr().err
        assert sum(drawn, []) == [seed for seed in range(COUNT) if str(seed) not in listed]
        assert (f"{len(listed)} of {COUNT} images are there\n" in err) is bool(listed)
        assert images(out) == reference and record(out)["images"] == record(whole)["images"]
        assert (out / "grid.png").read_bytes() == (whole / "grid.png").read_bytes()
        at += 1
    assert at > COUNT + 4  # every image, every record, and the grid


def test_killed_between_image_and_record(trained, whole, tmp_path, faults, drawn, monkeypatch):
    """A process that dies without a word after k images leaves at most some unrecorded ones, which are drawn again."""
    for k in range(COUNT + 1):
        out = tmp_path / str(k)
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "flush", lambda self: None)
            faults.arm("replace", k + 2, KeyboardInterrupt())  # the first is the empty record
            draw(trained, out)
            faults.disarm()
        assert len(images(out)) == k and record(out)["images"].keys() <= {str(seed) for seed in range(k)}
        assert draw(trained, out) == 0
        assert images(out) == images(whole)


def test_what_a_killed_call_was_writing_goes(trained, whole, tmp_path, monkeypatch):
    """Files that no call will finish go when a folder is whole; what only looks like them stays."""
    monkeypatch.setattr("os.replace", lambda *paths: os._exit(9))
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "000003.png").unlink()
    child = os.fork()
    if child == 0:
        draw(trained, out)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    (left,) = (name for name in tree(out) if name.startswith("."))
    (out / ".000003.png.notes").write_bytes(b"mine")
    assert draw(trained, out) == 0
    assert tree(out).keys() == {*tree(whole), ".000003.png.notes"} and left.startswith(".000003.png.")


def test_what_a_hand_changed_is_drawn_again(trained, whole, tmp_path, drawn):
    """Of the recorded images those that are missing or whose bytes are others are drawn, and no others."""
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "000002.png").unlink()
    (out / "000005.png").write_bytes((out / "000004.png").read_bytes())
    assert draw(trained, out) == 0
    assert drawn == [[2, 5]] and images(out) == images(whole)
    assert draw(trained, out) == 0
    assert drawn == [[2, 5]] and tree(out).keys() == tree(whole).keys()


def test_the_grid_shows_the_folder(trained, tmp_path):
    """After calls with other seeds grid.png holds every image of the folder once, in the order of seeds, and no other file."""
    for seeds in ("9,4", "2", "0,4"):
        assert draw(trained, tmp_path, "--seeds", seeds) == 0
    sheet = contact_sheet(torch.stack([read(tmp_path / f"{seed:06d}.png") for seed in (0, 2, 4, 9)]))
    grid = read(tmp_path / "grid.png")
    scale = grid.shape[-1] // sheet.shape[-1]
    assert torch.equal(grid[:, ::scale, ::scale], sheet)
    assert list(record(tmp_path)["images"]) == ["0", "2", "4", "9"]


# ---- the record


def test_the_record_says_where_images_come_from(trained, whole):
    """samples.json holds settings that decode to what was used, run, step, recipe, versions, evaluations, and every file's digest."""
    found = record(whole)
    assert found["images"] == {str(seed): digest((whole / f"{seed:06d}.png").read_bytes()) for seed in range(COUNT)}
    decoded = {key: nz.registry.decode(found["settings"][key]) for key in ("solver", "grid", "steps", "nfe", "through")}
    recipe = trained.recipe
    assert decoded == {"solver": recipe.solver, "grid": recipe.grid, "steps": 3, "nfe": None, "through": None}
    assert (found["run"], found["step"], found["recipe"]) == (str(trained.path), 6, recipe.name)
    assert found["versions"]["torch"] == torch.__version__ and found["network_evaluations"] == 3
    assert found["images_per_second"] > 0 and found["schema_version"] == 1


OTHERS = {
    "solver": ["--solver", "ddim"],
    "grid": ["--grid", "sqrt"],
    "steps": ["--steps", "4"],
    "steps, nfe": ["--nfe", "3"],
    "through": ["--through", "sigma", "--grid", "uniform"],
    "checkpoint, weights": ["--raw-weights"],
    "guidance": ["--guidance", "2"],
}


@pytest.mark.parametrize("named", OTHERS)
def test_one_folder_one_kind(trained, weaker, whole, tmp_path, capsys, named):
    """Images of other settings are refused, by name and with the remedy, and --overwrite leaves none of the old."""
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "000009.png").write_bytes(b"mine")
    before = tree(out)
    extra = ["--guide", str(weaker.path)] if named == "guidance" else []
    arguments = ["--seeds", "3,8", *OTHERS[named], *extra]
    assert draw(trained, out, *arguments) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "another --out, or --overwrite" in err and tree(out) == before
    for one in named.split(", "):
        assert one in err.split("holds images of another ")[1].split(";")[0]
    assert draw(trained, out, *arguments, "--overwrite") == 0
    assert set(tree(out)) == {"000003.png", "000008.png", "000009.png", "grid.png", "samples.json"}
    assert tree(out)["000009.png"] == b"mine" and list(record(out)["images"]) == ["3", "8"]
    fresh = tmp_path / "fresh"
    assert draw(trained, fresh, *arguments) == 0
    assert images(fresh).items() <= images(out).items()


def test_another_checkpoint_is_another_kind(trained, run_folder, tmp_path, capsys):
    """After more training the old images are refused: an image and its record name the weights, not the folder."""
    out, moved = tmp_path / "out", nz.Run.load(run_folder)
    assert draw(trained, out) == 0
    assert draw(moved, out) == 0  # a copy of the run is the same run
    longer = replace(moved.recipe, training=replace(moved.recipe.training, steps=8))
    train(longer, pictures(), run_folder, resume=True)
    capsys.readouterr()
    assert draw(moved, out) == 2
    assert "images of another checkpoint;" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1, "images": {"x": ""}}'])
@pytest.mark.parametrize("name", ["samples.json", "samples.4.json"])
def test_a_damaged_record(trained, whole, tmp_path, capsys, content, name):
    """A record that is none is refused in a line, and replaced with --overwrite."""
    out = shutil.copytree(whole, tmp_path / "out")
    (out / name).write_text(content)
    before = tree(out)
    assert draw(trained, out) == 2
    assert re_line(capsys.readouterr().err, name) and tree(out) == before
    assert draw(trained, out, "--overwrite") == 0
    assert images(out) == images(whole) and tree(out).keys() == tree(whole).keys()


def re_line(err, part):
    return err.count("\n") == 1 and err.startswith("nearzero: error: ") and part in err


# ---- memory


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_too_little_memory_halves_the_batch(trained, whole, tmp_path, drawn, capsys, error):
    """Out of memory the batch is halved until it fits, the same seeds are drawn again, stderr says so, no byte changes."""
    drawn.limit, drawn.error = 2, error
    assert draw(trained, tmp_path, "--batch", "6") == 0
    assert drawn == [[0, 1, 2, 3, 4, 5], [0, 1, 2], [0], [1], [2], [3], [4], [5], [6]]
    err = capsys.readouterr().err
    assert "out of memory at 6 images at once; drawing them again by 3\n" in err and "at 3 images" in err
    assert images(tmp_path) == images(whole) and record(tmp_path)["network_evaluations"] == 3


def test_one_image_too_many(trained, tmp_path, drawn, capsys):
    """Where one image does not fit, the exit code is 6 with one line of advice, and what was drawn stays."""
    drawn.limit = 0
    assert draw(trained, tmp_path / "out") == 6
    assert "out of memory at one image at a time; take --device cpu" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    production = Production(trained, trained.recipe.solver, trained.recipe.grid, 3)
    with pytest.raises(OutOfMemoryError):
        produce(production, [0], tmp_path / "out")


def test_another_error_is_not_memory(trained, tmp_path, drawn):
    """A RuntimeError of another kind keeps its traceback, at once."""
    drawn.limit, drawn.error = 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        draw(trained, tmp_path / "out")
    assert drawn == [list(range(COUNT))] and not (tmp_path / "out").exists()


# ---- solvers, grids, processes, guidance


LESS = {"rk4": 8}  # of 9 evaluations; the other plans use them all


@pytest.mark.parametrize("name", [name for name in choices.SOLVERS if name != "rk45"])
def test_every_solver_keeps_to_its_budget(trained, tmp_path, asked, name):
    """With --nfe 9 the network is asked nine times an image by every solver (rk4: twice four), and the record says so."""
    assert draw(trained, tmp_path, "--solver", name, "--nfe", "9", "-n", "2") == 0
    expected = LESS.get(name, 9)
    assert sum(asked) == 2 * expected and record(tmp_path)["network_evaluations"] == expected


def test_rk45_asks_as_often_as_it_needs(trained, tmp_path, asked):
    """The adaptive solver, which has steps alone, is recorded with what it asked, at least six evaluations a step."""
    assert draw(trained, tmp_path, "--solver", "rk45", "--steps", "2", "-n", "2") == 0
    assert record(tmp_path)["network_evaluations"] == sum(asked) / 2 >= 12


def test_the_table_of_solvers_is_whole():
    """Every solver of the library has a name, each name makes another object, and --eta and --churn reach theirs."""
    recipe = tiny_recipe()
    made = {name: choices.solver(name, recipe, None, None) for name in choices.SOLVERS}
    assert len(set(made.values())) == len(made)
    library = {
        cls
        for cls in nz.registry._CLASSES.values()
        if cls.__module__.startswith("nearzero.solvers") and hasattr(cls, "step")
    }
    assert {type(solver) for solver in made.values()} == library
    assert choices.solver("ddim", recipe, 0.5, None) == nz.DDIM(0.5)
    assert choices.solver("churn", recipe, None, 7.0) == nz.Churn(7.0)
    assert choices.solver(None, recipe, None, None) == recipe.solver


@pytest.mark.filterwarnings("ignore:on this grid of 3 steps sharing changes nothing")
def test_the_table_of_grids_is_whole(trained, tmp_path):
    """Every grid samples, and all but Aligned, which takes another, have a name."""
    recipe = tiny_recipe()
    none = {"sigma_min": None, "sigma_max": None, "rho": None}
    made = {name: choices.grid(name, recipe, None, None, none) for name in choices.GRIDS}
    library = {cls for cls in nz.registry._CLASSES.values() if cls.__module__ == "nearzero.grid"}
    assert {type(one) for one in made.values()} == library - {nz.grid.Aligned}
    for name, grid in made.items():
        assert draw(trained, tmp_path / name, "--grid", name, "-n", "1") == 0
        assert torch.equal(read(tmp_path / name / "000000.png"), to_bytes(trained.sample([0], grid=grid, steps=3))[0])


@pytest.mark.filterwarnings("default:on this grid")
def test_warnings_are_lines(trained, tmp_path, capsys):
    """What the library warns of is said once, as one line on stderr, without the line of code that it comes from."""
    assert draw(trained, tmp_path, "--grid", "leading", "--batch", "3") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("nearzero: warning: on this grid of 3 steps sharing changes nothing")


def test_sampling_through_sigma(trained, tmp_path):
    """--through sigma is EDM's sampler of a network of any process: sigma = t from 80, Karras's levels, nodes of training."""
    calls = {
        "plain": ([], nz.KarrasVE(80.0), nz.KarrasGrid()),
        "levels": (
            ["--sigma-min", "0.01", "--sigma-max", "50", "--rho", "5"],
            nz.KarrasVE(50.0),
            nz.KarrasGrid(0.01, 50.0, 5.0),
        ),
        "uniform": (["--grid", "uniform", "--sigma-max", "50"], nz.KarrasVE(50.0), nz.UniformGrid()),
    }
    for name, (arguments, process, grid) in calls.items():
        out = tmp_path / name
        assert draw(trained, out, "--through", "sigma", "--solver", "heun", "-n", "1", *arguments) == 0
        seen = nz.Through(process, nearest=True)
        assert torch.equal(
            read(out / "000000.png"),
            to_bytes(trained.sample([0], solver=nz.Heun(), grid=grid, steps=3, through=seen))[0],
        )
        assert nz.registry.decode(record(out)["settings"]["through"]) == seen


def test_the_recipes_own_process_and_levels(run_folder, tmp_path):
    """A recipe that samples through another process does so unless --through trained; its own Karras levels stay but for those named."""
    made = nz.Run.load(run_folder)
    grid, seen = nz.KarrasGrid(0.02, 60.0), nz.Through(nz.KarrasVE(70.0))
    nz.Run.create(run_folder, replace(made.recipe, grid=grid, through=seen, steps=3), made.data, made.seed)
    made = nz.Run.load(run_folder)
    trained = nz.Through(made.recipe.process)
    for arguments, used in (
        ([], {}),
        (["--rho", "3"], {"grid": nz.KarrasGrid(0.02, 60.0, 3.0)}),
        (["--grid", "karras", "--sigma-max", "50"], {"grid": nz.KarrasGrid(0.02, 50.0)}),
        (["--through", "trained"], {"through": trained}),
    ):
        out = tmp_path / "-".join(arguments or ["plain"])
        assert draw(made, out, "-n", "1", *arguments) == 0
        apart = read(out / "000000.png").int() - to_bytes(made.sample([0], **used))[0].int()
        assert apart.abs().max() <= ("trained" in arguments)  # a process seen through itself is itself to the rounding


def test_autoguidance(trained, weaker, tmp_path, asked):
    """--guidance S --guide RUN2 samples `Guided`, asking both networks, inside the interval only; scale 1 is the run itself."""
    strong, weak = trained.denoiser(), weaker.denoiser()
    guide = ["--guide", str(weaker.path), "-n", "2"]
    cases = {
        "all": (["--guidance", "2.5"], Guided(strong, weak, 2.5), 6),
        "some": (
            ["--guidance", "2.5", "--guidance-interval", "0.1-5"],
            Guided(strong, weak, 2.5, (0.1, 5.0)),
            4,
        ),
        "one": (["--guidance", "1"], strong, 3),
    }
    for name, (arguments, denoiser, evaluations) in cases.items():
        asked.clear()
        assert draw(trained, tmp_path / name, *guide, *arguments) == 0
        assert sum(asked) == 2 * evaluations and record(tmp_path / name)["network_evaluations"] == evaluations
        expected = to_bytes(trained.sample([0, 1], steps=3, denoiser=denoiser))
        assert torch.equal(read(tmp_path / name / "000001.png"), expected[1])
    assert len({tuple(images(tmp_path / name).values()) for name in cases}) == 3


def test_a_guide_of_another_kind(trained, tmp_path, capsys):
    """A guide that was told other numbers, or trained on other images, is refused with both names."""
    ddpm = replace(tiny_recipe(steps=1), conditioning=nz.Timestep(1000))
    centred = replace(tiny_recipe(steps=1), codec=nz.Centred((0.5,)))
    for name, recipe, said in (
        ("ddpm", ddpm, "the conditioning is Shared"),
        ("mean", centred, "another size or codec"),
    ):
        other = train(recipe, pictures(), tmp_path / name)
        capsys.readouterr()
        assert draw(trained, tmp_path / "out", "--guide", str(other.path), "--guidance", "2") == 2
        assert re_line(capsys.readouterr().err, said) and not (tmp_path / "out").exists()


# ---- the film


@pytest.mark.parametrize(("count", "steps", "frames"), [(10, 30, 10), (2, 3, 4)])
def test_the_film_ends_in_the_images(trained, tmp_path, count, steps, frames):
    """A strip for each of the first eight seeds: the noise they start from on the left, the finished image on the right, in both rows."""
    out = tmp_path / "out"
    assert draw(trained, out, "-n", str(count), "--steps", str(steps), "--trajectory") == 0
    film, shown = read(out / "trajectory.png"), min(count, 8)
    width, height = 9 * frames + 1, 19 + 2  # two rows of 8 pixels with lines between, and a gap
    scale = film.shape[-1] // width
    film = film[:, ::scale, ::scale]
    assert film.shape == (1, shown * height, width)
    path = nz.trajectory(
        trained.denoiser(),
        (1, 8, 8),
        solver=trained.recipe.solver,
        grid=trained.recipe.grid,
        steps=steps,
        seeds=range(shown),
    )
    first = trained.denoiser()(path[0].x, path[0].t).x0
    first, noise = (to_bytes(trained.recipe.codec.decode(x)) for x in (first, path[0].x))
    for i in range(shown):
        top, right = i * height + 1, 9 * (frames - 1) + 1
        image = read(out / f"{i:06d}.png")
        for row in (top, top + 9):
            assert torch.equal(film[:, row : row + 8, right : right + 8], image)
        assert torch.equal(film[:, top : top + 8, 1:9], noise[i])
        assert torch.equal(film[:, top + 9 : top + 17, 1:9], first[i])


def test_a_film_of_what_is_there(trained, whole, tmp_path):
    """--trajectory later adds the film that it would have added at once, and draws no image again."""
    out = shutil.copytree(whole, tmp_path / "out")
    assert draw(trained, out, "--trajectory") == 0
    assert draw(trained, tmp_path / "once", "--trajectory") == 0
    assert (out / "trajectory.png").read_bytes() == (tmp_path / "once/trajectory.png").read_bytes()
    assert {name: content for name, content in tree(out).items() if name != "trajectory.png"} == tree(whole)


# ---- parsing


@pytest.mark.parametrize(
    ("text", "levels"),
    [("0.3-5", (0.3, 5.0)), ("0-1e3", (0.0, 1000.0)), ("1e-3-2.", (0.001, 2.0)), (" .5 - 1 ", (0.5, 1.0))],
)
def test_intervals_are_what_they_say(text, levels):
    """LOW-HIGH in decimals, with exponents of either sign."""
    assert choices.interval(text) == levels


@pytest.mark.parametrize("text", ["", "1", "1-", "-1-2", "2-1", "1-1", "a-b", "1-2-3", "nan-1", "0-inf", "0-1e999"])
def test_intervals_that_are_none(text):
    """Anything else is refused."""
    with pytest.raises(ArgumentError, match="LOW-HIGH"):
        choices.interval(text)
