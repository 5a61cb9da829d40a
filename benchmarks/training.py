"""What training costs beside the network: our loop, a bare step and diffusers' training example, in one run.

    .venv/bin/python benchmarks/training.py [STEPS ROUNDS]

The demo's network (16 x 16 grey, 701,345 parameters) and its images, batches of 64, Adam, one average of the weights.

1. Step: the three are run in turn, STEPS steps each, ROUNDS times; medians, and the median of the rounds' ratios. The
   bare step has its images on the device, torch's own noise, and nothing else. diffusers' example is written after its
   documented structure (train_unconditional.py): DataLoader, scheduler.add_noise, accelerate, AdamW, a cosine schedule,
   clipped gradients, EMAModel and loss.item(), with no log. All three train on the same data for as long.
2. Saving: the longest of the steps during which a checkpoint is written, over the median of the others.
"""

import contextlib
import itertools
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch

import nearzero as nz
from nearzero import recipes
from nearzero.training.engine import Engine
from nearzero.training.loop import train
from nearzero.training.state import TrainingState
from nearzero.training.step import steps

BATCH = 64


def recipe(count):
    """DDPM with the demo's network."""
    small = recipes.small(recipes.ddpm(), 16, 1)
    return replace(small, training=replace(small.training, steps=count, batch=BATCH))


def ours(images):
    """Our loop: yields after each step."""
    made = recipe(10**9)
    state = TrainingState(made, 0, torch.device("cpu"), Engine("cpu"))
    for _ in steps(state, made, images, 0):
        yield


def bare(images):
    """The same network, optimizer, average and loss, written down with nothing around them."""
    made = recipe(1)
    torch.manual_seed(0)
    network = made.network.build().train()
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=1e-3)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    a, b = alpha_bar.sqrt()[:, None, None, None], (1 - alpha_bar).sqrt()[:, None, None, None]
    data = images.pixels.float() / 127.5 - 1
    while True:
        x0 = data[torch.randint(len(data), (BATCH,))]
        eps, k = torch.randn_like(x0), torch.randint(1000, (BATCH,))
        loss = (network(a[k] * x0 + b[k] * eps, k.float()) - eps).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [weight.detach() for weight in weights], 1e-4)
        yield


def theirs(images):
    """diffusers' unconditional example around the same network."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler
    from diffusers.optimization import get_scheduler
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = recipe(1).network.build().unet.train()
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.95, 0.999), weight_decay=1e-6)
    data = [{"input": image.float() / 127.5 - 1} for image in images.pixels]
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10**6)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    while True:
        for batch in loader:
            clean = batch["input"]
            noise = torch.randn(clean.shape)
            timesteps = torch.randint(0, 1000, (len(clean),)).long()
            noisy = scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(model):
                answer = model(noisy, timesteps).sample
                loss = torch.nn.functional.mse_loss(answer.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            average.step(model.parameters())
            loss.detach().item()
            yield


def speed(images, count, rounds):
    """Prints seconds for a step of each, and their ratios."""
    loops = {"ours": ours(images), "bare": bare(images), "diffusers": theirs(images)}
    taken = {name: [] for name in loops}
    for number in range(rounds + 1):
        order = list(loops.items())
        for name, loop in order[number % 3 :] + order[: number % 3]:  # no one always comes first
            start = time.perf_counter()
            for _ in range(count):
                next(loop)
            taken[name].append((time.perf_counter() - start) / count)
    print(f"\nmilliseconds a step of {BATCH}, median of {rounds} rounds of {count} steps")
    for name, seconds in taken.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[1:], taken["bare"][1:], strict=True))
        print(f"  {name:12}{1e3 * statistics.median(seconds[1:]):8.1f}   {ratio:6.3f} of the bare step")
    print("goal for ours: 1.02, at most 1.05 and not above diffusers'")


def saving(images, count):
    """Prints the longest step while a checkpoint is being written."""
    ends, every = [], 10
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
        train(
            recipe(max(count, 4 * every)),
            images,
            Path(folder) / "run",
            checkpoint_every=every,
            preview_every=10**9,
            progress=lambda now: ends.append((now.step, time.perf_counter())),
        )
    taken = {step: after - before for (_, before), (step, after) in itertools.pairwise(ends)}
    during = [seconds for step, seconds in taken.items() if step % every in (1, 2)]  # saves begin after step k every
    others = [seconds for step, seconds in taken.items() if step % every not in (1, 2) and step > 2]
    print(f"\nlongest step with a save in flight {1e3 * max(during):.1f} ms, median of the others ", end="")
    print(f"{1e3 * statistics.median(others):.1f} ms: {max(during) / statistics.median(others):.2f} (goal 2)")


if __name__ == "__main__":
    count, rounds = (int(number) for number in (sys.argv[1:] or ("20", "9")))
    warnings.simplefilter("ignore")
    images = nz.embedded(16)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    speed(images, count, rounds)
    saving(images, count)
