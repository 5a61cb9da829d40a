"""The command: `nearzero COMMAND`. One file a command, loaded when it is called; `--help` imports no torch."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence

import click

import nearzero
from nearzero.errors import ArgumentError, NearzeroError, did_you_mean

COMMANDS = {
    "demo": "Train DDPM and E-TSDM for a few minutes and see what sharing does near t = 0.",
    "train": "Train a recipe on a folder of images.",
    "zoo": "List the trained models that come with the package, each a run called zoo:NAME.",
    "sample": "Draw images from a trained run.",
    "evaluate": "Measure a run: likelihood, distance of samples to real images, distance against cost.",
    "diagnose": "Measure a run or a diffusers pipeline near t = 0, and say whether to share.",
    "finetune": "Train a diffusers pipeline further, with its timesteps shared near t = 0.",
    "export": "Write a run as a diffusers pipeline.",
    "convert": "Take the tensors out of a foreign checkpoint without running it; ADM's become a pipeline.",
    "reproduce": "Compute a figure or a table of the papers anew, as a page, pictures and numbers.",
    "inspect": "Say what a run is: recipe, data, checkpoints, averages, origin.",
    "verify": "Compare every checkpoint of a run with its manifest.",
    "status": "Say how far a run is, and who trains it.",
    "data": "Examine images, or fetch a public data set by name.",
    "compare": "Compare runs: recipes, distances, K near t = 0, samples; fail on a condition.",
    "report": "Write a page about a run, a reproduction or a folder of runs.",
    "doctor": "Examine a recipe's noise schedule at both ends.",
    "recipes": "List recipes, show one, or show where two differ.",
}


class _Lazy(click.Group):
    """Finds nearzero.cli.NAME only when NAME is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            raise ArgumentError(f"unknown command {cmd_name!r}; {did_you_mean(cmd_name, COMMANDS)}")
        return importlib.import_module(f"nearzero.cli.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(nearzero.__version__, prog_name="nearzero", message="%(prog)s %(version)s")
def group() -> None:
    """Diffusion models that behave at t = 0: train, sample and diagnose.

    \b
    nearzero demo
    nearzero sample zoo:etsdm --out first
    nearzero train etsdm --data my_images --size 32 --out runs/mine
    nearzero sample runs/mine -n 64 --out samples

    Exit codes: 0 done, 1 bug, 2 usage, 3 data, 4 checkpoint, 5 numbers, 6 memory,
    7 disk, 10 a condition of --fail-if holds, 75 stopped early with a valid checkpoint.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits: 0, or the error's own code after one line on stderr."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    from nearzero.cli.common import say

    with warnings.catch_warnings():  # what the library warns of is one line, without the line of code
        warnings.showwarning = lambda message, *_, **__: say(f"nearzero: warning: {message}")
        return _run(arguments)


def _run(arguments: list[str]) -> int:
    try:
        code = group.main(args=arguments or ["--help"], prog_name="nearzero", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except NearzeroError as error:
        return _fail(str(error), error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 130)
    except BrokenPipeError:
        return 0
    except (MemoryError, RuntimeError) as error:
        if _is_out_of_memory(error):
            return _fail("out of memory; take fewer images at once or smaller ones", 6)
        raise


def _fail(message: str, code: int) -> int:
    from nearzero.cli.common import printable

    line = printable(" ".join(message.split()))
    line = line if len(line) <= 2000 else f"{line[:1000]} ... {line[-900:]}"
    print(f"nearzero: {line}" if code == 75 else f"nearzero: error: {line}", file=sys.stderr)
    return code


def _is_out_of_memory(error: BaseException) -> bool:
    from nearzero.training.memory import is_out_of_memory

    return is_out_of_memory(error)
