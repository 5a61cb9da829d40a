"""nearzero reproduce --verify: a kept result is whole, its command runs, and its numbers come out again."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import tree
from nearzero.cards import read_card
from nearzero.cli import run
from nearzero.errors import DataError, NumericalError
from nearzero.experiments import committed, full
from nearzero.experiments.theory import Found

HERE = committed.machine("cpu")
ELSEWHERE = {**HERE, "threads": 999}
HEADER = ("row", "images seen", "measure", "value", "standard error", "images", "evaluations")
COMMAND = "nearzero reproduce full-table1 --budget smoke --out x"
FILES = sorted((Path(__file__).parents[1] / "results").glob("*/*.json"))
CARDS = [path for path in FILES if path.parent.name == "pair16"]
RESULTS = [path for path in FILES if path not in CARDS]


def found(rows, header=HEADER, **summary):
    return Found("t", "l", ("x",), header, rows, summary)


def called(capsys, *arguments):
    capsys.readouterr()
    return run(["reproduce", *map(str, arguments)]), *capsys.readouterr()


def written(folder, rows, command=COMMAND, name="full-table1", header=HEADER):
    """A result of these rows on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    committed.write(folder, name, found(rows, header, paper={"a": (1, 2.5)}), command)
    return folder / f"{name}.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `nearzero reproduce etsdm-snr` wrote."""
    folder = tmp_path_factory.mktemp("made") / "snr"
    assert run(["reproduce", "etsdm-snr", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def kept(made, tmp_path):
    """A copy that a test may edit: the JSON's path."""
    for name in ("etsdm-snr.json", "etsdm-snr.csv"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    return tmp_path / "etsdm-snr.json"


# ---- what is written


def test_what_is_written_is_read(tmp_path):
    """Rows, command, machine and seal come back; the summary is in it."""
    rows = [("a, b", 1, "x", 0.1 + 0.2, None, 3, 4), ('"q"', 2, "y", 1e-300, 0.5, 3, 4)]
    one = committed.read(written(tmp_path, rows))
    assert [list(row) for row in one.rows] == [["" if c is None else str(c) for c in row] for row in rows]
    assert one.sealed and one.machine == HERE and one.summary["paper"] == {"a": [1, 2.5]}
    assert one.options() == {"budget": "smoke", "out": "x"}
    assert committed.compare(one, found(rows), HERE) == (9, 9, True)


def test_any_change_is_found(kept):
    """Every digit of the JSON and of the CSV, changed alone, is refused.

    What the JSON does not say is free: spaces, and a seventeenth digit that is read as the same number.
    """
    for path in (kept, kept.with_suffix(".csv")):
        text = path.read_text()
        digits = [k for k, c in enumerate(text) if c.isdigit()]
        for k in digits[:: max(1, len(digits) // 25)]:
            changed = text[:k] + str((int(text[k]) + 1) % 10) + text[k + 1 :]
            if path == kept and json.loads(changed) == json.loads(text):
                continue
            path.write_text(changed)
            with pytest.raises(DataError):
                committed.read(kept)
        path.write_text(text)
    kept.write_text(json.dumps(json.loads(kept.read_text())))
    assert committed.read(kept).sealed


# ---- numbers


@given(value=st.floats(-1e3, 1e3), error=st.floats(1e-3, 10), off=st.floats(-4, 4))
def test_a_value_holds_within_its_interval(tmp_path_factory, value, error, off):
    """Elsewhere a rerun holds exactly where it lies within 1.96 standard errors; here it must be the same text."""
    one = committed.read(written(tmp_path_factory.mktemp("r"), [("a", 1, "x", value, error, 3, 4)]))
    new = value + off * error
    again = found([("a", 1, "x", new, 2 * error, 3, 5)])
    inside = abs(new - value) <= 1.96 * error or math.isclose(new, value, rel_tol=1e-6)
    if inside:
        assert not committed.compare(one, again, ELSEWHERE).same_machine
    else:
        with pytest.raises(NumericalError, match="outside its 95 % interval"):
            committed.compare(one, again, ELSEWHERE)
    with pytest.raises(NumericalError, match="to the last digit"):
        committed.compare(one, again, HERE)


@pytest.mark.parametrize(
    "row",
    [
        ("b", 1, "x", 1.0, 0.5, 3, 4),
        ("a", 2, "x", 1.0, 0.5, 3, 4),
        ("a", 1, "x", None, 0.5, 3, 4),
        ("a", 1, "x", float("nan"), 0.5, 3, 4),
    ],
)
def test_other_rows_do_not_hold(tmp_path, row):
    """Another name, another number of images, no value, NaN: each is refused on every machine; so are more rows, and other columns."""
    one = committed.read(written(tmp_path, [("a", 1, "x", 1.0, 0.5, 3, 4)]))
    for rerun in (found([row]), found([one.rows[0], one.rows[0]]), found([one.rows[0]], [*HEADER[:-1], "calls"])):
        with pytest.raises(NumericalError):
            committed.compare(one, rerun, ELSEWHERE)


def test_without_errors_numbers_are_close(tmp_path):
    """Rows of an experiment without errors agree to 1e-6 elsewhere."""
    one = committed.read(written(tmp_path, [("a", 2.0)], header=("name", "k")))
    committed.compare(one, found([("a", 2.000001)], ("name", "k")), ELSEWHERE)
    with pytest.raises(NumericalError):
        committed.compare(one, found([("a", 2.00001)], ("name", "k")), ELSEWHERE)


# ---- the command


def test_a_whole_result_verifies(kept, capsys):
    """Exit 0: whole by its seal, every number to the last digit; nothing is written beside it, and --json says the same."""
    before = tree(kept.parent)
    code, out, err = called(capsys, "--verify", kept, "--json")
    told = json.loads(out)
    assert code == 0 and err == "" and told["sealed"] and told["check"]["same"] == told["check"]["numbers"] > 100
    assert told["check"]["same_machine"] and tree(kept.parent) == before


def test_an_edited_result_does_not(kept, capsys):
    """An edited file ends in 3. With its seal cut off, as old results have none, that is said; an edited number is then found by the rerun: 5."""
    text, rows = kept.read_text(), kept.with_suffix(".csv").read_text()
    kept.write_text(text.replace("0.", "1.", 1))
    assert called(capsys, "--verify", kept)[0] == 3
    old = {name: value for name, value in json.loads(text).items() if name not in ("sha256", "machine", "csv_sha256")}
    kept.write_text(json.dumps(old))
    code, out, err = called(capsys, "--verify", kept)
    assert code == 0 and "before results were sealed" in err and "without a seal" in out
    *lines, last = rows.splitlines()
    kept.with_suffix(".csv").write_text("\n".join([*lines, last.rsplit(",", 1)[0] + ",123.5"]) + "\n")
    code, out, err = called(capsys, "--verify", kept)
    assert code == 5 and out == "" and "123.5" in err.splitlines()[-1]
    kept.with_suffix(".csv").write_text(rows.replace("etsdm-snr", "exponents", 1))
    assert called(capsys, "--verify", kept)[0] == 3
    kept.with_suffix(".csv").unlink()
    assert called(capsys, "--verify", kept)[0] == 4


@pytest.mark.parametrize("arguments", [("etsdm-snr",), ("--out", "x"), ("--seed", "0"), ("--budget", "smoke")])
def test_the_file_says_it_all(kept, capsys, arguments):
    """A name or an option beside --verify is refused."""
    assert called(capsys, *arguments, "--verify", kept)[0] == 2


def test_what_is_no_result(tmp_path, capsys, made):
    """Other JSON, a command of something else and an unknown experiment end in 3, a missing file in 4."""
    for text in ("[]", "{}", '{"command": "rm -rf x", "name": "x"}'):
        (tmp_path / "a.json").write_text(text)
        assert called(capsys, "--verify", tmp_path / "a.json")[0] == 3
    for command, name in (
        ("nearzero reproduce none --out x", "none"),
        ("nearzero reproduce full-table1 --eval x", "full-table1"),
        ("nearzero reproduce full-table1 --out 'x", "full-table1"),
        ("nearzero reproduce full-table1; rm x", "full-table1"),
        ("nearzero reproduce full-table1 --seed -1", "full-table1"),
    ):
        path = written(tmp_path / "b", [("a", 1, "x", 1.0, 0.5, 3, 4)], command, name)
        assert called(capsys, "--verify", path)[0] == 3, command
    assert called(capsys, "--verify", tmp_path / "none.json")[0] == 4


@pytest.fixture
def fast(monkeypatch):
    """A stand-in for the training of full-table1, whose number depends on seed and budget; its calls are kept."""
    calls = []

    def full_table1(where):
        calls.append(where)
        assert where.out.is_dir() and not any(where.out.iterdir())
        return found([("a", 1, "x", 1.0 + where.seed, 0.5, where.budget.images, 4)])

    monkeypatch.setattr(full, "full_table1", full_table1)
    return calls


def test_training_is_rerun_at_smoke_size(tmp_path, capsys, fast):
    """A larger result is compared with the smoke result in a folder beside it, whose seed and images are used; without one its command is run and that is said."""
    large = written(
        tmp_path / "r/large",
        [("a", 1, "x", 9.0, 0.5, 999, 4)],
        "nearzero reproduce full-table1 --budget small --seed 3 --out x",
    )
    code, out, err = called(capsys, "--verify", large, "--device", "cpu")
    assert (
        code == 0
        and "no smoke result beside it" in out
        and fast[0].seed == 3
        and fast[0].budget == full.BUDGETS["smoke"]
    )
    images = full.BUDGETS["smoke"].images
    smoke = written(
        tmp_path / "r/smoke", [("a", 1, "x", 3.0, 0.5, images, 4)], "nearzero reproduce full-table1 --seed 2 --out x"
    )
    code, out, err = called(capsys, "--verify", large, "--device", "cpu")
    assert code == 0 and str(smoke) in out and "5 of 5 numbers" in out and fast[1].seed == 2
    written(
        tmp_path / "r/smoke", [("a", 1, "x", 8.0, 0.5, images, 4)], "nearzero reproduce full-table1 --seed 2 --out x"
    )
    code, out, err = called(capsys, "--verify", large, "--device", "cpu")
    assert code == 5 and err.splitlines()[-1].count("value is 3.0, the file has 8.0") == 1


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem + path.parent.name)
def test_every_committed_result_is_whole(path):
    """Each JSON in results/ can be read with its CSV, and has a smoke result to be compared with."""
    one = committed.read(path)
    assert committed.smoke(one) is not None and len(one.rows) > 10


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_every_committed_card_is_sealed(path):
    """Each card in results/ is as `nearzero evaluate --fd` wrote it, of what its name says."""
    card = read_card(path)
    run, seen, sampler = path.stem.rsplit("-", 2)
    assert card.subject["recipe"].split("_")[0] == run.split("-")[0]
    assert card.subject["images_seen"] == int(seen)
    assert card.subject["solver"]["class"] == {"ddim": "DDIM", "dpm": "DPMSolver"}[sampler]
