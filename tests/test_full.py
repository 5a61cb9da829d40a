"""FullDiffusion's table and figure as experiments: what they hold, that they go on, and what they refuse."""

import contextlib
import json
import shutil

import pytest
import torch

import nearzero as nz
from nearzero.cli import run as command
from nearzero.errors import ArgumentError, DataError
from nearzero.experiments import full
from nearzero.experiments.setting import Setting, setting
from nearzero.report import full as pages
from nearzero.training.stats import read_losses

TINY = full.Budget(8, 8, (1, 2), 4, 2, 4, 2, 1e-1, 4, 4, (2, 4))


@contextlib.contextmanager
def quiet(label, unit):
    yield lambda done, of: None


@pytest.fixture(scope="module")
def where(tmp_path_factory):
    """Where a table of two steps of each row has been made."""
    images = nz.embedded(8)
    half = nz.Images(images.pixels[:1000]), nz.Images(images.pixels[1000:])
    return Setting(TINY, *half, tmp_path_factory.mktemp("table"), quiet)


@pytest.fixture(scope="module")
def table(where):
    return full.full_table1(where)


def test_the_table_holds_every_row_and_measure(table):
    """Each row has bound and ODE after each stage and two distances after the last; errors are over the images stated."""
    lines = {(row[0], row[1], row[2]): row for row in table.rows}
    for name in full.rows():
        for measure in ("bound", "ode"):
            assert [lines[name, seen, measure][5] for seen in (4, 8)] == [TINY.probes, TINY.images]
        assert all(lines[name, 8, f"distance {kind}"][5] == TINY.samples for kind in ("SDE", "ODE"))
    drawn = pages.full_table1(table)
    assert [len(one.rows) for one in drawn.tables] == [5, 8, 5]
    assert len(drawn.pictures) == 1 + 2 * 5 + 1


def test_all_rows_have_one_network_and_training(where):
    """Rows differ in what Table 1 compares alone: network, training, dither and size are the same."""
    shared = {
        (one.network, one.training, one.dither) for one in (where.fitted(row.recipe) for row in full.rows().values())
    }
    assert len(shared) == 1 and next(iter(shared))[2]


def test_a_table_that_was_cut_short_goes_on(where, table, tmp_path):
    """Without some of its files, or of its runs, a second call computes what is missing and gives the same numbers."""
    shutil.copytree(where.out, tmp_path / "again")
    (tmp_path / "again" / "nll" / "full-0-2-ode.json").unlink()
    shutil.rmtree(tmp_path / "again" / "runs" / "full_w-0")
    again = full.full_table1(Setting(TINY, where.images, where.test, tmp_path / "again", quiet))
    assert again.rows == table.rows and again.summary == table.summary
    (tmp_path / "again" / "nll" / "full-0-1-ode.json").unlink()
    with pytest.raises(ArgumentError, match="is at step 2, past 1"):
        full.full_table1(Setting(TINY, where.images, where.test, tmp_path / "again", quiet))


def test_paired_differences_are_those_of_the_images(where, table):
    """The difference from ddpmpp is the mean, and its error the standard error, of the differences image by image."""
    files = {name: json.loads((where.out / "nll" / f"{name}-0-2-ode.json").read_text()) for name in ("ddpmpp", "full")}
    away = torch.tensor(files["full"]["columns"]["bits"]) - torch.tensor(files["ddpmpp"]["columns"]["bits"])
    mean, error = table.summary["paired"]["full ode"]
    assert mean == pytest.approx(away.mean().item(), abs=1e-5)
    assert error == pytest.approx((away.std() / 2).item(), abs=1e-5)


def test_the_figure_reads_the_loss_that_was_logged(where, table):
    """Panel (a) is the log's own loss in bits per dimension; panel (b) has each solver at each budget."""
    found = full.full_figure1(where)
    run = where.run(full.rows()["full_w"].recipe, 2)
    logged = [mean / (64 * 0.6931471805599453) for _, mean in read_losses(run.path / "stats.jsonl")]
    shown = [row[3] for row in found.rows if row[:2] == ("loss", "full_w")]
    assert shown == pytest.approx(logged, rel=1e-6)
    assert sum(row[0] == "distance" for row in found.rows) == 5 * len(TINY.curve)
    assert set(pages.full_figure1(found).pictures) == {"loss.png", "distance.png"}


def test_bad_settings(tmp_path):
    """Images without test images, sizes that differ, and too few test images are refused before anything is trained."""
    images = nz.embedded(16)
    with pytest.raises(ArgumentError, match="give both --data and --test"):
        setting(full.BUDGETS, "smoke", tmp_path, quiet, images, None)
    with pytest.raises(DataError, match="16 pixels, --test of 8"):
        setting(full.BUDGETS, "smoke", tmp_path, quiet, images, nz.embedded(8))
    with pytest.raises(DataError, match="holds 10 images and this budget needs 32"):
        setting(full.BUDGETS, "smoke", tmp_path, quiet, images, nz.Images(images.pixels[:10]))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["exponents", "--budget", "smoke"], "--budget is of experiments that train"),
        (["--seed", "1"], "name what to reproduce"),
        (["full-table1", "--data", "nowhere", "--test", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_options(options, match, tmp_path, monkeypatch, capsys):
    """Options of another experiment, and images that are not there, end with one line and nothing written."""
    monkeypatch.chdir(tmp_path)
    assert command(["reproduce", *options]) in (2, 3)
    assert match in capsys.readouterr().err and not list(tmp_path.iterdir())
