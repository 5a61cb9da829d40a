"""Devices, processes and precision: how a step of training is spread out, and what that may not change.

With P processes and A micro-batches (`accumulation`), process r takes the r-th of P equal parts of the batch, and of
that one after the other A equal parts. The loss is the mean over the whole batch, however it is cut. So the samples of
a step, their times and their noise do not depend on P and A, and the weights only by rounding.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from nearzero.denoiser import Denoiser
from nearzero.errors import ArgumentError, NearzeroError

T = TypeVar("T")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
STRATEGIES = ("ddp", "fsdp")


class Engine:
    """Where and how training computes: alone, or with the processes that torchrun started unless `alone` is set.

    `precision` is that of the network's own arithmetic; weights, averages, the objective and the optimizer stay in
    float32 ("fp16", with a loss scaler, needs a CUDA device). `checkpointing` computes the network's features a second
    time instead of keeping them; `compile` gives the network to torch.compile. `strategy` "fsdp" splits weights,
    averages and moments among the processes instead of copying them. Raises ArgumentError for anything else.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        precision: Literal["no", "bf16", "fp16"] = "no",
        accumulation: int = 1,
        *,
        checkpointing: bool = False,
        compile: bool = False,
        strategy: Literal["ddp", "fsdp"] = "ddp",
        alone: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.precision, self.accumulation, self.strategy = precision, accumulation, strategy
        self.checkpointing, self.compile = checkpointing, compile
        self.rank, self.processes = 0, 1
        self._accelerator: Any = None
        started = 1 if alone else int(os.environ.get("WORLD_SIZE", "1"))
        self._check(started)
        if started > 1:
            self._join()
        scaled = precision == "fp16"
        self.scaler = torch.amp.GradScaler("cuda" if scaled else "cpu", enabled=scaled)

    def _check(self, started: int) -> None:
        whole = isinstance(self.accumulation, int) and not isinstance(self.accumulation, bool)
        if not whole or self.accumulation < 1:
            raise ArgumentError(f"accumulation counts micro-batches: at least 1, got {self.accumulation}")
        for name, known in (("precision", PRECISIONS), ("strategy", STRATEGIES)):
            if getattr(self, name) not in known:
                raise ArgumentError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if self.precision == "fp16" and self.device.type != "cuda":
            raise ArgumentError(f"precision fp16 needs a CUDA device, got {self.device}; use bf16")
        if started > 1 and self.device.type not in ("cpu", "cuda"):
            raise ArgumentError(f"{started} processes need cpu or cuda, got {self.device}; start one")
        if self.strategy == "fsdp" and started == 1:
            raise ArgumentError("fsdp splits the weights among processes and there is one; start more with torchrun")
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ArgumentError("fsdp has no loss scaler for fp16; use bf16")

    def _join(self) -> None:
        from accelerate import Accelerator
        from torch import distributed

        self._accelerator = Accelerator(cpu=self.device.type == "cpu", mixed_precision="no")
        self.rank, self.processes = self._accelerator.process_index, self._accelerator.num_processes
        self.device = self._accelerator.device
        ours = distributed.get_backend() == "gloo"
        self._host = None if ours else distributed.new_group(backend="gloo")  # flags never wait for the device

    @property
    def main(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def rows(self, batch: int) -> list[slice]:
        """Which rows of the whole batch this process takes, one slice a micro-batch.

        Raises ArgumentError where the batch does not divide into processes times micro-batches.

        >>> Engine(accumulation=2).rows(6)
        [slice(0, 3, None), slice(3, 6, None)]
        """
        parts = self.processes * self.accumulation
        size, rest = divmod(batch, parts)
        if rest or not size:
            near = " or ".join(str(n * parts) for n in (size, size + 1) if n)
            fit = [n for n in range(1, batch + 1) if batch % (self.processes * n) == 0]
            fit = [n for n in fit if n < self.accumulation][-1:] + [n for n in fit if n > self.accumulation][:1]
            other = " or ".join(map(str, fit))
            raise ArgumentError(
                f"a batch of {batch} does not divide into {self.processes} processes times {self.accumulation} "
                f"micro-batches; use --batch {near}" + (f", or --accumulate {other}" if other else "")
            )
        first = self.rank * self.accumulation * size
        return [slice(first + n * size, first + (n + 1) * size) for n in range(self.accumulation)]

    def wrap(self, denoiser: Denoiser, objective: nn.Module, shape: tuple[int, ...]) -> nn.Module:
        """The module whose call (x0 (b, *shape), t (b,), eps) gives the losses (b,).

        Call it before there is an optimizer: fsdp splits the weights. Raises ArgumentError for a network without
        gradient checkpointing where that is asked for.
        """
        network: Any = denoiser.network
        dtype = PRECISIONS[self.precision]
        if self.checkpointing:
            if not hasattr(network, "checkpoint"):
                name = type(network).__name__
                raise ArgumentError(f"{name} has no gradient checkpointing; leave out --checkpointing")
            network.checkpoint()
        if self.strategy == "fsdp":
            self._network = _shard(network)
        heard: Any = torch.compile(network) if self.compile else network
        heard = heard if dtype is None else _Cast(heard, dtype)
        if heard is not network:
            denoiser = Denoiser(heard, denoiser.process, denoiser.parameterization, denoiser.conditioning)
        losses = _Losses(denoiser, objective)
        return losses if self.processes == 1 or self.strategy == "fsdp" else self._copied(losses, shape)

    def _copied(self, losses: _Losses, shape: tuple[int, ...]) -> nn.Module:
        from accelerate import DistributedDataParallelKwargs

        idle = _unused(losses, shape, self.device)
        options = DistributedDataParallelKwargs(gradient_as_bucket_view=True, find_unused_parameters=idle)
        self._accelerator.ddp_handler = options
        return self._accelerator.prepare_model(losses)

    def backward(self, module: nn.Module, x0: Tensor, t: Tensor, eps: Tensor, *, last: bool) -> Tensor:
        """Adds a micro-batch's share of the mean loss to the gradient; its losses (b,).

        With the `last` one of a step the gradient becomes the mean over all processes.
        """
        with self._sharing(module, last):
            losses = module(x0, t, eps)
            mean = losses.mean() if self.accumulation == 1 else losses.mean() / self.accumulation
            self.scaler.scale(mean).backward()
        if last and self.strategy == "fsdp":
            for parameter in module.get_submodule("objective").parameters():
                if parameter.grad is not None:
                    parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
        return losses.detach()

    @contextlib.contextmanager
    def _sharing(self, module: nn.Module, last: bool) -> Iterator[None]:
        """Gradients stay in this process but for the last micro-batch's; another process's death ends this one."""
        if self.processes == 1:
            yield
            return
        if self.strategy == "fsdp":
            self._network.set_requires_gradient_sync(last)
        local = contextlib.nullcontext() if last or self.strategy == "fsdp" else self._accelerator.no_sync(module)
        with self._connected(), local:
            yield

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes the loss scaler's factor out of the gradients, if there is one."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, unless a scaled gradient overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    @property
    def scale(self) -> float | None:
        """The loss scaler's factor; None without one."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def gather(self, losses: Tensor) -> Tensor:
        """The losses of every process (B,), in the order of their samples."""
        if self.processes == 1:
            return losses
        with self._connected():
            return self._accelerator.gather(losses)

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true in every process where it is in one."""
        if self.processes == 1:
            return list(flags)
        return [value > 0 for value in self._most([int(flag) for flag in flags])]

    def first(self, call: Callable[[], T]) -> T | None:
        """What `call` returns in the main process; the others wait, and end with it if it fails."""
        with self.together():
            return call() if self.main else None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Waits for all processes; where one fails inside, it raises its error and the others exit with its code.

        Where several fail, as with an argument that none accepts, the first of them raises.
        """
        if self.processes == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
        code = 130 if isinstance(failure, KeyboardInterrupt) else getattr(failure, "exit_code", 1)
        told = self._most([self.processes - self.rank if failure is not None else 0])[0]
        first = self.processes - told
        code = self._most([code if self.rank == first else 0])[0]
        if failure is not None and self.rank == first:
            raise failure
        if told:
            raise SystemExit(code) from failure

    def close(self) -> None:
        """Leaves the other processes."""
        if self.processes > 1:
            self._accelerator.end_training()

    def _most(self, numbers: list[int]) -> list[int]:
        from torch import distributed

        told = torch.tensor(numbers, dtype=torch.int64)
        with self._connected():
            distributed.all_reduce(told, op=distributed.ReduceOp.MAX, group=self._host)
        return told.tolist()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Says in one line that another process has gone, and in the others nothing: its own error says why."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
                raise
            if not self.main:
                raise SystemExit(1) from error
            what = f"another of the {self.processes} processes has ended; see its error above"
            raise NearzeroError(f"{what}, then go on with --resume") from error


class _Losses(nn.Module):
    """The losses (b,) of a denoiser at given times: one module, as processes share the gradient of one."""

    def __init__(self, denoiser: Denoiser, objective: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.objective = objective

    def forward(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        return self.objective.at(self.denoiser, x0, t, eps).loss  # pyright: ignore[reportCallIssue]


class _Cast(nn.Module):
    """A network that computes in another precision and answers in its input's."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network
        self.dtype = dtype

    def forward(self, x: Tensor, c: Tensor, **condition: Tensor) -> Tensor:
        with torch.autocast(x.device.type, self.dtype):
            F = self.network(x, c, **condition)
        return F.to(x.dtype)


def _unused(losses: _Losses, shape: tuple[int, ...], device: torch.device) -> bool:
    """Whether some parameter has no part in the losses: DDP has to be told."""
    objective: Any = losses.objective
    t = objective.times(torch.tensor([0.25, 0.75], dtype=torch.float64), losses.denoiser.process)
    zero = torch.zeros(2, *shape, device=device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        losses.eval()
        mean = losses(zero, t, zero).mean()
        losses.train()
    trained = [parameter for parameter in losses.parameters() if parameter.requires_grad]
    return any(found is None for found in torch.autograd.grad(mean, trained, allow_unused=True))


def _shard(network: nn.Module) -> Any:
    """Splits the weights among the processes; those of a member of a list of layers come together when it computes."""
    from torch.distributed.fsdp import fully_shard

    for module in list(network.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                if not isinstance(layer, nn.ModuleList) and any(p.requires_grad for p in layer.parameters()):
                    fully_shard(layer)
    return fully_shard(network)
