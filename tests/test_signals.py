"""Signals ask for a stop, and only a second SIGINT does not wait."""

import signal
import subprocess
import sys
import threading

import pytest

from nearzero.training.signals import stop_on_signals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]
SCRIPT = """
import sys, time
from nearzero.errors import Stopped
from nearzero.training.signals import stop_on_signals

def work():
    with stop_on_signals() as stopping:
        print("ready", flush=True)
        for _ in range({wait}):  # a step
            if stopping() is not None and not {deaf}:
                raise Stopped(f"stopped by {{stopping().name}}")
            if stopping() is not None:
                print(stopping().name, flush=True)
            time.sleep(0.01)

try:
    work()
except Stopped as error:
    print(error, flush=True)
    sys.exit(error.exit_code)
except KeyboardInterrupt:
    print("at once", flush=True)
    sys.exit(130)
"""


def start(deaf=False, wait=2000):
    """A process that works until it is asked to stop; a deaf one goes on."""
    script = SCRIPT.format(deaf=deaf, wait=wait)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_to_a_process_stops_it_in_order(number):
    """One real SIGINT, SIGTERM or SIGUSR1 ends the work after its step: the process knows which and exits 75."""
    process = start()
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == (f"stopped by {number.name}\n", 75)


def test_a_second_sigint_to_a_process_does_not_wait():
    """A process that does not look is left by the second SIGINT, 130, whatever came before; it knows the first signal."""
    for first in (signal.SIGINT, signal.SIGTERM):
        process = start(deaf=True)
        for number in dict.fromkeys((first, signal.SIGINT)):
            process.send_signal(number)
            assert process.stdout.readline() == f"{first.name}\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        assert out.splitlines()[-1] == "at once" and process.returncode == 130


def test_more_signals_of_another_kind_change_nothing():
    """Three SIGTERMs and SIGUSR1s, and one SIGINT after them, neither raise nor change which came first."""
    with stop_on_signals() as stopping:
        assert stopping() is None
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT):
            signal.raise_signal(number)
            assert stopping() is signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("ends", [None, ZeroDivisionError, KeyboardInterrupt])
def test_former_handlers_come_back(ends):
    """However the block ends, each signal has the handler that it had, also where that was to be ignored."""
    first = {number: signal.getsignal(number) for number in NUMBERS}
    mine = {signal.SIGINT: lambda *_: None, signal.SIGTERM: signal.SIG_IGN, signal.SIGUSR1: signal.SIG_DFL}
    try:
        for number, handler in mine.items():
            signal.signal(number, handler)
        try:
            with stop_on_signals():
                assert not any(signal.getsignal(number) == handler for number, handler in mine.items())
                if ends is not None:
                    raise ends
        except BaseException as error:
            assert type(error) is ends
        assert {number: signal.getsignal(number) for number in NUMBERS} == mine
    finally:
        for number, handler in first.items():
            signal.signal(number, handler)


def test_two_blocks_know_nothing_of_each_other():
    """A signal in one block is not seen in the next, nor in the one around it."""
    with stop_on_signals() as outer:
        with stop_on_signals() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner() is signal.SIGTERM and outer() is None
        with stop_on_signals() as inner:
            signal.raise_signal(signal.SIGUSR1)
        assert inner() is signal.SIGUSR1 and outer() is None


def test_other_threads_change_no_handler():
    """Outside the main thread the handlers stay as they are and nothing asks for a stop."""
    seen = []

    def work():
        with stop_on_signals() as stopping:
            seen.append(([signal.getsignal(number) for number in NUMBERS], stopping()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [([signal.getsignal(number) for number in NUMBERS], None)]


def test_a_platform_without_sigusr1(monkeypatch):
    """Where there is no SIGUSR1 the two others stop, and a handler that Python did not set is left alone."""
    monkeypatch.delattr(signal, "SIGUSR1")
    with stop_on_signals() as stopping:
        signal.raise_signal(signal.SIGINT)
        assert stopping() is signal.SIGINT
    get = signal.getsignal
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else get(number))
    before = get(signal.SIGTERM)
    with stop_on_signals():
        assert get(signal.SIGTERM) is before and get(signal.SIGINT) is not signal.default_int_handler


def test_the_command_leaves_with_130(monkeypatch, capsys):
    """KeyboardInterrupt anywhere in a command is exit code 130 and one line."""
    from nearzero import cli

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.group, "main", interrupted)
    assert cli.run(["recipes"]) == 130
    assert capsys.readouterr().err == "nearzero: error: interrupted\n"
