"""stats.jsonl and events.jsonl: what a line says, lines that a stop does not change, files that a full disk does not stop."""

import contextlib
import json
import math
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import nearzero as nz
from conftest import tiny_recipe
from nearzero.errors import ArgumentError, CheckpointError, NumericalError
from nearzero.training import events as events_module
from nearzero.training.events import Appender, Events, read_events, summary
from nearzero.training.stats import BINS, EDGES, Stats, by_noise_level, read_losses

resource = pytest.importorskip("resource")
SIZE = 4


def training(steps=100):
    return tiny_recipe(steps=steps, batch=SIZE).training


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def step(number):
    """What step `number` reports, a function of it alone: losses, log-SNR with both infinities, norm and rate."""
    generator = torch.Generator().manual_seed(number)
    losses = torch.randn(SIZE, generator=generator).exp()
    logsnr = 12 * torch.randn(SIZE, generator=generator, dtype=torch.float64)
    logsnr[number % SIZE] = (math.inf, -math.inf, 0.0)[number % 3]
    return losses, {"logsnr": logsnr, "gradient_norm": losses.norm(), "rate": 1e-4 * number}


# ---- what a line says

numbers = st.floats(-1e6, 1e6)
levels = st.one_of(st.floats(-40, 40), st.sampled_from([math.inf, -math.inf, *(-2 * edge for edge in EDGES)]))


@given(st.lists(st.tuples(numbers, levels), min_size=1, max_size=40))
def test_the_bins_recombine_to_the_total(samples):
    """Each sample lies in the one bin whose half-open interval holds -logsnr / 2, and num, mean and std of the bins give those of all."""
    losses, logsnr = (torch.tensor(part, dtype=torch.float64) for part in zip(*samples, strict=True))
    found = by_noise_level(losses, logsnr)
    ends = [-math.inf, *EDGES, math.inf]
    count = dict.fromkeys(BINS, 0)
    for _, snr in samples:
        x = -snr / 2
        (bin_,) = (i for i in range(len(BINS)) if ends[i] <= x < ends[i + 1] or (x == math.inf and i == len(BINS) - 1))
        count[BINS[bin_]] += 1
    assert {name: entry["num"] for name, entry in found.items()} == {name: n for name, n in count.items() if n}
    n = len(samples)
    mean = sum(entry["num"] * entry["mean"] for entry in found.values()) / n
    square = sum(entry["num"] * (entry["std"] ** 2 + entry["mean"] ** 2) for entry in found.values()) / n
    scale = max(abs(loss) for loss, _ in samples)
    assert mean == pytest.approx(losses.mean().item(), abs=1e-13 * scale)
    assert square == pytest.approx(losses.square().mean().item(), abs=1e-13 * scale**2)


def test_time_0_has_a_bin():
    """t = 0 of every process lies in the first bin, a time without signal in the last, and a sample without a level in none."""
    one = torch.ones(1)
    for process in (nz.LinearVP(), nz.KarrasVE(), nz.CosineVP()):
        assert list(by_noise_level(one, process(torch.zeros(1)).logsnr)) == ["Loss/log_sigma below -8"]
    assert list(by_noise_level(one, torch.tensor([-math.inf]))) == ["Loss/log_sigma from 6"]
    assert by_noise_level(one, torch.tensor([math.nan])) == {}
    assert BINS[3] == "Loss/log_sigma -4 to -2"


def test_a_line_is_what_its_steps_reported(tmp_path):
    """num, mean and std of losses, batch means, norms and rates are those of a sum in Python, and times those of the clock."""
    now = [1000.0]
    with Stats(tmp_path / "stats.jsonl", 0, training(30), every=10, clock=lambda: now[0]) as stats:
        for k in range(1, 31):
            now[0] += 2.0
            losses, facts = step(k)
            stats.add(k, losses, **facts)
    rows = lines(tmp_path / "stats.jsonl")
    assert [row["step"] for row in rows] == [10, 20, 30]
    for row in rows:
        told = [step(k) for k in range(row["step"] - 9, row["step"] + 1)]
        batches = [losses.double().tolist() for losses, _ in told]
        expected = {
            "Loss/loss": [loss for batch in batches for loss in batch],
            "Loss/batch_mean": [math.fsum(batch) / SIZE for batch in batches],
            "Gradient/norm": [float(facts["gradient_norm"]) for _, facts in told],
            "Training/rate": [facts["rate"] for _, facts in told],
        }
        for name, values in expected.items():
            mean = math.fsum(values) / len(values)
            std = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
            assert row[name] == {
                "num": len(values),
                "mean": pytest.approx(mean, rel=1e-14),
                "std": pytest.approx(std, rel=1e-13),
            }, name
        assert row["images"] == row["step"] * SIZE and row["Progress/kimg"]["mean"] == row["step"] * SIZE / 1000
        assert row["Timing/total_sec"]["mean"] == 2.0 * row["step"]
        assert row["Timing/sec_per_kimg"]["mean"] == pytest.approx(20.0 / (10 * SIZE) * 1000)
        assert row["Progress/images_per_sec"]["mean"] == pytest.approx(10 * SIZE / 20.0)
        assert row["Timing/eta_sec"]["mean"] == pytest.approx(2.0 * (30 - row["step"]))
        assert sum(entry["num"] for name, entry in row.items() if name in BINS) == 10 * SIZE
    assert read_losses(tmp_path / "stats.jsonl") == [(row["step"], row["Loss/loss"]["mean"]) for row in rows]


def test_what_is_not_told_is_not_logged(tmp_path):
    """add(step, losses) alone writes losses, batch means, progress and timing, and nothing else."""
    with Stats(tmp_path / "stats.jsonl", 0, training(), every=1) as stats:
        stats.add(1, step(1)[0])
    (row,) = lines(tmp_path / "stats.jsonl")
    assert {name for name in row if "/" in name} == {
        *("Loss/loss", "Loss/batch_mean", "Progress/kimg", "Progress/images_per_sec"),
        *("Timing/total_sec", "Timing/sec_per_kimg", "Timing/eta_sec"),
    }


def test_a_step_asks_nothing_of_the_device(tmp_path, monkeypatch):
    """add takes tensors that have no values yet (meta), so it reads none; a line copies once to the host, whatever it holds."""
    with Stats(tmp_path / "stats.jsonl", 0, training()) as stats:
        for k in range(1, 50):
            losses, facts = step(k)
            told = {name: value.to("meta") for name, value in facts.items() if torch.is_tensor(value)}
            stats.add(k, losses.to("meta"), rate=facts["rate"], **(told if k % 2 else {}))
    copies, copy = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copies.append(len(tensor)) or copy(tensor))
    with Stats(tmp_path / "stats.jsonl", 0, training()) as stats:
        for k in range(1, 101):
            losses, facts = step(k)
            stats.add(k, losses, **facts)
    assert copies == [50 * (SIZE + SIZE + 1 + 1)] * 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_does_not_wait_for_the_gpu(tmp_path):
    """On a GPU that raises where a call waits for it, add of a step that ends no line does not wait."""
    with Stats(tmp_path / "stats.jsonl", 0, training()) as stats:
        for k in range(1, 50):
            losses, facts = step(k)
            told = {name: value.cuda() if torch.is_tensor(value) else value for name, value in facts.items()}
            losses = losses.cuda()
            torch.cuda.set_sync_debug_mode("error")
            try:
                stats.add(k, losses, **told)
            finally:
                torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ends_training(tmp_path, bad):
    """A loss or gradient norm that is not finite raises NumericalError of one line at the next line, which is not written."""
    for told in ({"losses": torch.tensor([1.0, bad])}, {"losses": torch.ones(2), "gradient_norm": bad}):
        path = tmp_path / f"{len(told)}.jsonl"
        with Stats(path, 0, training(), every=2) as stats:
            stats.add(1, **told)
            with pytest.raises(NumericalError, match="not finite at step 2; lower the learning rate"):
                stats.add(2, torch.ones(2))
        assert path.read_bytes() == b""


# ---- a stop leaves no trace


def timeless(rows):
    return [
        {name: entry for name, entry in row.items() if name.split("/")[0] != "Timing" and name not in WHEN}
        for row in rows
    ]


WHEN = ("timestamp", "Progress/images_per_sec")


def train(path, first, last, pending, *, total, every, skipped=(), bare=()):
    """Steps first + 1 ... last of a run of `total`; what a checkpoint at `last` holds, through a safetensors file."""
    with Stats(path, first, training(total), every) as stats:
        stats.restore(load(pending))
        for k in range(first + 1, last + 1):
            losses, facts = step(k)
            if k in skipped:
                stats.skip(k)
            else:
                stats.add(k, losses, **({} if k in bare else facts))
        return save(stats.pending())


@settings(max_examples=60)
@given(st.data())
def test_a_stop_leaves_no_trace(tmp_path_factory, data):
    """Stopped anywhere, any number of times, a crash later than each, with steps left out: the lines are bit for bit those of one run."""
    folder = tmp_path_factory.mktemp("stats")
    total, every = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 9))
    some = st.sets(st.integers(1, total), max_size=4)
    told = {"total": total, "every": every, "skipped": data.draw(some), "bare": data.draw(some)}
    stops = sorted(data.draw(st.sets(st.integers(0, total), max_size=3)))
    assert load(train(folder / "whole.jsonl", 0, total, save({}), **told)) == {}
    first, pending = 0, save({})
    for stop in stops:
        pending = train(folder / "parts.jsonl", first, stop, pending, **told)
        beyond = data.draw(st.integers(stop, total))
        train(folder / "parts.jsonl", stop, beyond, pending, **told)  # killed after its last checkpoint
        with (folder / "parts.jsonl").open("ab") as file:
            file.write(b'{"step": 1, "ima'[: data.draw(st.integers(0, 16))])
        first = stop
    train(folder / "parts.jsonl", first, total, pending, **told)
    assert timeless(lines(folder / "parts.jsonl")) == timeless(lines(folder / "whole.jsonl"))


def test_a_damaged_pending_log_is_a_checkpoint_error(tmp_path):
    """restore refuses what pending did not give: an entry that is missing, or numbers that do not add up."""
    with Stats(tmp_path / "stats.jsonl", 0, training()) as stats:
        losses, facts = step(1)
        stats.add(1, losses, **facts)
        good = stats.pending()
        assert {tensor.dtype for tensor in good.values()} == {torch.float64, torch.int64}
        for change in ({"samples": torch.tensor([SIZE + 1])}, {"loss": torch.zeros(1)}, {"samples": torch.zeros(1)}):
            with pytest.raises(CheckpointError, match="pending log is damaged"):
                stats.restore({**good, **change})
        for name in ("samples", "loss", "logsnr"):
            with pytest.raises(CheckpointError, match=f"damaged: '{name}'"):
                stats.restore({key: value for key, value in good.items() if key != name})


# ---- full disks


@contextlib.contextmanager
def file_limit(size):
    """The system refuses to let a file grow beyond `size` bytes; what fits of a write is written."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk_does_not_stop_training(tmp_path, capsys):
    """F6: with no room for the rest of a line (the system writes a part of it) training goes on after one warning and an event; with room again, every line is there once and in order."""
    path, told = tmp_path / "stats.jsonl", Events(tmp_path / "events.jsonl")
    with Stats(path, 0, training(), every=5, events=told) as stats:
        for k in range(1, 101):
            size = path.stat().st_size
            full = 22 <= k < 58 or 71 <= k < 83
            with file_limit(size + 10) if full and k % 5 == 0 else contextlib.nullcontext():
                losses, facts = step(k)
                stats.add(k, losses, **facts)
            if full and k % 5 == 0:
                assert path.read_bytes()[:-1].count(b"\n") == (4 if k < 58 else 14) - (path.read_bytes()[-1:] == b"\n")
    assert [row["step"] for row in lines(path)] == list(range(5, 101, 5))
    assert [(event["kind"], event["step"]) for event in read_events(tmp_path / "events.jsonl")] == [
        *(("log_failed", 25), ("log_recovered", 60), ("log_failed", 75), ("log_recovered", 85))
    ]
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"nearzero: warning: cannot write {path}: File too large; training goes on")


def test_a_log_that_never_comes_back_does_not_stop_training(tmp_path, capsys):
    """With the file's name taken by a folder, and the events' too, 100 steps and 100 events raise nothing and warn once each."""
    path, events = tmp_path / "stats.jsonl", Events(tmp_path / "events.jsonl")
    with Stats(path, 0, training(), every=1, events=events) as stats:
        path.unlink()
        path.mkdir()
        (tmp_path / "events.jsonl").mkdir()
        for k in range(1, 101):
            stats.add(k, step(k)[0])
            events.add("tick", k)
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_closed_stderr_does_not_stop_training(tmp_path, monkeypatch):
    """The warning about a log that cannot be written goes nowhere where there is no stderr, or a closed one."""
    closed = (tmp_path / "stderr").open("w")
    closed.close()
    for stderr in (None, closed):
        monkeypatch.setattr("sys.stderr", stderr)
        Events(tmp_path).add("tick", 1)


@given(keep=st.integers(1, 5), count=st.integers(1, 12))
def test_waiting_lines_are_bounded(tmp_path_factory, keep, count):
    """Of `count` lines that were refused, the last `keep` are written when the disk takes them again, and the rest are counted as lost."""
    path, lost = tmp_path_factory.mktemp("full") / "log", []
    path.mkdir()
    file = Appender(path, recovered=lost.append, keep=keep)
    file.warned = True
    for k in range(count):
        file.append(str(k))
    path.rmdir()
    file.append("last")
    expected = [*map(str, range(count)), "last"]
    assert path.read_text().split() == expected[-keep:]
    assert lost == [max(0, count + 1 - keep)]


def test_a_line_inside_a_write_is_written_once(tmp_path, monkeypatch):
    """A signal handler that logs while a line is being written adds its own line after it: both are there once, whole."""
    cut, file = events_module._cut_half_line, Appender(tmp_path / "log")

    def interrupted(handle):
        monkeypatch.setattr(events_module, "_cut_half_line", cut)
        file.append("handler")
        cut(handle)

    monkeypatch.setattr(events_module, "_cut_half_line", interrupted)
    file.append("line")
    file.append("next")
    assert (tmp_path / "log").read_text() == "line\nhandler\nnext\n"


# ---- events

text = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from("\n\r\x1b\u2028\udc80")
)  # the last as from a file name that is no UTF-8
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.tuples(text, st.integers(0, 10**9), plain), min_size=1, max_size=5))
def test_events_come_back_as_they_were(tmp_path_factory, told):
    """Whatever text an event has (newlines, escapes of terminals, lone surrogates), it is one line of printable ASCII and reads back equal."""
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    for kind, at, fact in told:
        Events(path).add(kind, at, fact=fact)
    content = path.read_bytes()
    assert content.count(b"\n") == len(told) and all(32 <= byte < 127 or byte == 10 for byte in content)
    found = read_events(path)
    assert [(event["kind"], event["step"], event["fact"]) for event in found] == told
    assert sum(summary(found).values()) == len(told) and summary(found).keys() == {kind for kind, _, _ in told}


def test_a_cut_file_is_read_up_to_the_cut(tmp_path):
    """After a crash at any byte the events are the first ones, and the next event is added to exactly these."""
    path, whole = tmp_path / "events.jsonl", tmp_path / "whole"
    for k in range(3):
        Events(whole).add("skip", k, text="a\nb\x1b[31m")
    content, events = whole.read_bytes(), read_events(whole)
    assert read_events(tmp_path / "none") == []
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        complete = content[:cut].count(b"\n")
        seen = read_events(path)
        assert seen in (events[:complete], events[: complete + 1])  # with all but its newline, an event can be read
        Events(path).add("after", 9)
        assert read_events(path)[:-1] == events[:complete] and read_events(path)[-1]["kind"] == "after"


def test_facts_of_other_types_are_told(tmp_path):
    """Tensors are lists, numbers that are not finite are their names, other objects their str; a fact called time is refused."""
    events = Events(tmp_path / "events.jsonl")
    events.add("skip", 3, loss=torch.tensor([1.0, math.nan]), norm=math.inf, path=Path("a/b"), at=(1, -math.inf))
    (event,) = read_events(tmp_path / "events.jsonl")
    assert {name: event[name] for name in ("loss", "norm", "path", "at")} == {
        **{"loss": [1.0, "nan"], "norm": "inf", "path": "a/b", "at": [1, "-inf"]}
    }
    assert event["time"].endswith("+00:00") and list(event)[:3] == ["time", "kind", "step"]
    with pytest.raises(ArgumentError, match="skip_time or times"):
        events.add("skip", 3, time=0.5)


def test_threads_share_the_log(tmp_path):
    """Four threads of 50 events each leave 200 whole lines, each once."""
    events = Events(tmp_path / "events.jsonl")

    def work(name):
        for k in range(50):
            events.add(name, k)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(event["kind"], event["step"]) for event in read_events(tmp_path / "events.jsonl")]
    assert sorted(found) == [(name, k) for name in "abcd" for k in range(50)]
