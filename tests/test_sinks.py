"""Logs besides stats.jsonl: what they get, and that nothing they do stops or delays a run."""

import json
import sys
import threading
import types

import pytest
import torch

from conftest import tiny_recipe
from nearzero.errors import ArgumentError
from nearzero.training import sinks
from nearzero.training.events import Events, read_events
from nearzero.training.sinks import SINKS, Guarded, check_sinks, open_sinks, scalars
from nearzero.training.stats import Stats


class Probe:
    """A sink that keeps what it is given and in which thread; `fault(call)` may raise or block, call by call."""

    def __init__(self, fault=lambda call: None):
        self.fault, self.calls, self.lines, self.threads, self.made, self.closed = fault, 0, [], set(), [], 0

    def __call__(self, step):
        self.made.append(step)
        return self

    def write(self, step, line):
        self.calls += 1
        self.threads.add(threading.current_thread())
        self.fault(self.calls)
        self.lines.append(step)

    def close(self):
        self.closed += 1


def fail(call):
    raise ConnectionError("the server\nis down")


def events_of(folder):
    return [(event["kind"], event["sink"]) for event in read_events(folder / "events.jsonl")]


def train(folder, *sinks, first=0, last=100, every=1, salt=0):
    """A line of stats.jsonl for every `every` of the steps first + 1 ... last; returns them."""
    with Stats(folder / "stats.jsonl", first, tiny_recipe(steps=last).training, every, sinks=sinks) as stats:
        for k in range(first + 1, last + 1):
            generator = torch.Generator().manual_seed(k + 1000 * salt)
            losses = torch.rand(4, generator=generator)
            stats.add(k, losses, logsnr=20 * torch.randn(4, generator=generator), gradient_norm=losses.sum(), rate=1e-4)
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def test_a_sink_gets_every_line_once_and_in_order(tmp_path):
    """A sink that works is made once, from the step that the run goes on from, gets each line in a thread that is not training's, and is closed once."""
    probe = Probe()
    rows = train(tmp_path, Guarded("probe", probe, step=7))
    assert probe.lines == [row["step"] for row in rows] == list(range(1, 101))
    assert probe.made == [7] and probe.closed == 1
    assert len(probe.threads) == 1 and threading.main_thread() not in probe.threads


def raises_in_write():
    return Probe(fail)


def raises_in_construction():
    probe = Probe()
    return lambda step: (probe(step), fail(1))


def exits():
    return Probe(lambda call: sys.exit("the library gives up"))


@pytest.mark.parametrize("kind", [raises_in_write, raises_in_construction, exits], ids=lambda kind: kind.__name__)
def test_a_sink_that_raises_does_not_stop_training(tmp_path, capsys, kind):
    """F31: all lines are in stats.jsonl; the sink is tried at most 7 times in 100 lines and once at the end, and is one warning, a final note and two events."""
    tries, make = [], kind()
    guarded = Guarded("probe", lambda step: (tries.append(step), make(step))[1], Events(tmp_path / "events.jsonl"))
    assert len(train(tmp_path, guarded)) == 100
    assert not guarded.thread.is_alive()
    assert 1 <= len(tries) <= 8 and set(tries) == {0}  # at lines 1, 2, 4, ..., 64 at the earliest
    assert events_of(tmp_path) == [("sink_failed", "probe"), ("sink_incomplete", "probe")]
    warning, note = capsys.readouterr().err.splitlines()
    assert warning.startswith("nearzero: warning: --log probe failed (") and "training goes on" in warning
    assert note == "nearzero: warning: --log probe did not take 100 of 100 lines; stats.jsonl has them all"


def test_tries_are_powers_of_two_apart():
    """After the k-th failure in a row the next try comes 2^(k - 1) lines later, at most 64."""
    tried = threading.Semaphore(0)
    guarded = Guarded("probe", lambda step: tried.release() or fail(1), keep=1000)
    tries = []
    for line in range(1, 400):
        guarded.write(line, {})
        with guarded.changed:
            due = guarded._ready()
        if due or guarded.failures > len(tries) or line == 1:
            assert tried.acquire(timeout=60)
            while guarded.failures == len(tries) or guarded.retry_at <= line:
                pass  # the thread notes the failure
            tries.append(line)
    guarded.close()
    assert tries == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384]


def test_a_sink_that_hangs_does_not_delay_training(tmp_path, capsys):
    """While the first write never returns, 100 lines are taken by the queue in as many calls, which holds no more than `keep`, and closing waits no longer than its patience."""
    never = threading.Event()
    probe = Probe(lambda call: never.wait())
    guarded = Guarded("probe", probe, Events(tmp_path / "events.jsonl"), keep=8, patience=0.0)
    try:
        assert len(train(tmp_path, guarded)) == 100
        assert guarded.thread.is_alive() or probe.calls == 0
        assert guarded.lines == 100 and len(guarded.waiting) <= 8 and probe.calls <= 1
        (event,) = read_events(tmp_path / "events.jsonl")
        assert (event["kind"], event["missing"], event["lines"], event["hangs"]) == ("sink_incomplete", 100, 100, True)
        assert "did not take 100 of 100 lines" in capsys.readouterr().err
        assert guarded.thread.daemon  # so that it does not hold the process
    finally:
        never.set()
        guarded.thread.join(60)


def test_a_slow_sink_loses_the_oldest_lines():
    """A sink that is busy with line 1 while 2 ... 20 come into a queue of 4 gets 1, 17, 18, 19, 20."""
    busy, free = threading.Event(), threading.Event()

    def slow(call):
        busy.set()
        assert free.wait(60)

    probe = Probe(slow)
    guarded = Guarded("probe", probe, keep=4, patience=60)
    guarded.write(1, {})
    assert busy.wait(60)
    for step in range(2, 21):
        guarded.write(step, {})
    free.set()
    guarded.close()
    assert probe.lines == [1, 17, 18, 19, 20]


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_a_sink_that_comes_back_gets_what_waited(tmp_path, capsys, failures):
    """After an outage the sink is made again, from the last step it took, and has every line once and in order; the outage is one warning and two events."""
    probe = Probe(lambda call: fail(call) if 3 <= call < 3 + failures else None)
    guarded = Guarded("probe", probe, Events(tmp_path / "events.jsonl"), patience=60)
    train(tmp_path, guarded)
    assert probe.lines == list(range(1, 101))
    assert probe.made == [0] + [2] * failures and probe.closed == len(probe.made)
    assert events_of(tmp_path) == [("sink_failed", "probe"), ("sink_recovered", "probe")]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_sink_that_fails_to_close_is_a_warning(tmp_path, capsys):
    """An exception from close ends nothing: one warning and one event; a second close does nothing."""
    probe = Probe()
    probe.close = lambda: fail(1)
    guarded = Guarded("probe", probe, Events(tmp_path / "events.jsonl"))
    assert len(train(tmp_path, guarded)) == 100
    guarded.close()
    assert events_of(tmp_path) == [("sink_failed", "probe")] and probe.lines == list(range(1, 101))
    assert "ConnectionError: the server is down" in capsys.readouterr().err


def test_without_a_thread_there_is_no_sink(tmp_path, monkeypatch, capsys):
    """Where the system has no thread left, the sink is a warning and training goes on."""
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda thread: (_ for _ in ()).throw(RuntimeError("no more threads")))
        guarded = Guarded("probe", Probe(), Events(tmp_path / "events.jsonl"))
    assert len(train(tmp_path, guarded)) == 100
    assert events_of(tmp_path) == [("sink_failed", "probe"), ("sink_incomplete", "probe")]
    assert "RuntimeError: no more threads" in capsys.readouterr().err


def test_an_interrupt_does_not_wait_for_sinks(tmp_path):
    """KeyboardInterrupt, the second Ctrl-C, leaves without closing a sink; an error of training closes it."""
    for error, closed in ((KeyboardInterrupt, 0), (RuntimeError, 1)):
        probe = Probe()
        with pytest.raises(error), Stats(tmp_path / "stats.jsonl", 0, tiny_recipe().training, sinks=(probe,)):
            raise error
        assert probe.closed == closed


# ---- names


def test_an_unknown_log_is_refused():
    """--log with a name outside the table is an ArgumentError that names the nearest."""
    with pytest.raises(ArgumentError, match="--log tensorbord: there is no such log; did you mean 'tensorboard'"):
        check_sinks(["tensorbord"])


@pytest.mark.parametrize("name", SINKS)
def test_a_missing_package_is_refused_with_the_way_to_get_it(monkeypatch, tmp_path, name):
    """Without its package each log is an ArgumentError with the pip line, before anything is written."""
    monkeypatch.setattr(sinks, "find_spec", lambda package: None)
    with pytest.raises(ArgumentError, match=rf"--log {name} needs .* pip install 'nearzero\[{name}\]'"):
        open_sinks([name], tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


# ---- TensorBoard


@pytest.fixture
def shown():
    """What TensorBoard's own reader shows of a folder: {tag: {step: value}}."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        found = EventAccumulator(str(folder)).Reload()
        tags = {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
        assert all(len(dict(events)) == len(events) for events in tags.values())  # no step twice
        return {tag: dict(events) for tag, events in tags.items()}

    return read


def expected(rows):
    """Means and deviations of the lines as float32, the precision of event files."""
    tags = {}
    for row in rows:
        for name, value in scalars(row).items():
            tags.setdefault(name, {})[row["step"]] = torch.tensor(value, dtype=torch.float32).item()
    return tags


def test_tensorboard_shows_what_the_lines_say(tmp_path, shown):
    """Its own reader finds in the event files each scalar of each line, and of a run that is resumed from step 20 of 30 no step twice."""
    rows = train(tmp_path, *open_sinks(["tensorboard", "tensorboard"], tmp_path, 0), last=30, every=5)
    assert shown(tmp_path / "tensorboard") == expected(rows)
    assert {"Loss/loss", "Loss/loss/std", "Loss/batch_mean/std", "Training/rate"} <= shown(
        tmp_path / "tensorboard"
    ).keys()
    rows = train(tmp_path, *open_sinks(["tensorboard"], tmp_path, 20), first=20, last=40, every=5, salt=1)
    assert [row["step"] for row in rows] == [5, 10, 15, 20, 25, 30, 35, 40]
    assert shown(tmp_path / "tensorboard") == expected(rows)


def test_tensorboard_without_a_place_to_write_is_a_warning(tmp_path, capsys, shown):
    """Where its folder is a file, training goes on after a warning."""
    (tmp_path / "tensorboard").write_text("taken")
    assert len(train(tmp_path, *open_sinks(["tensorboard"], tmp_path, 0), last=30, every=5)) == 6
    assert "--log tensorboard failed (" in capsys.readouterr().err


# ---- Weights & Biases and trackio, by stand-ins with the same calls


class Remote:
    def __init__(self):
        self.logged, self.finished = [], 0

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.mark.parametrize("logged_in", [True, False])
@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_remote_logs_get_the_lines(tmp_path, monkeypatch, capsys, name, logged_in):
    """Each gets the scalars of each line at its step and is finished, keeps its name on a resume and has another for a new run; W&B never asks for a login; stdout stays empty."""
    remote, asked = Remote(), []
    module = types.ModuleType(name)
    module.Settings = lambda **settings: settings
    module.login = lambda **arguments: arguments == {"prompt": False, "verify": False} and logged_in

    def init(project, **arguments):
        if name == "trackio":
            exec("print('* created')", vars(module))
        asked.append({"project": project, **arguments})
        return remote

    module.init = init
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(sinks, "find_spec", lambda package: module)
    names = []
    for created in ("monday", "monday", "tuesday"):
        (tmp_path / "run.json").write_text(json.dumps({"provenance": {"created": created}}))
        rows = train(tmp_path, *open_sinks([name], tmp_path, 0), last=20, every=5)
        names.append(asked[-1].get("id") or asked[-1]["name"])
    assert len(remote.logged) == 3 * 4 and remote.logged[-4:] == [(row["step"], scalars(row)) for row in rows]
    assert names[0] == names[1] != names[2] and remote.finished == 3
    assert asked[-1]["resume"] == "allow" and asked[-1]["project"] == "nearzero"
    assert capsys.readouterr().out == ""
    if name == "wandb":
        assert asked[-1]["mode"] == (None if logged_in else "offline") and asked[-1]["dir"] == str(tmp_path)
