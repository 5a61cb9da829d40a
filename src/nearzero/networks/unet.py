"""The ADM U-Net, built from diffusers' UNet2DModel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nearzero.errors import ArgumentError
from nearzero.registry import register

LIMITS = {"size": 2048, "channels": 32, "base": 4096, "blocks": 64, "head_channels": 4096, "time_channels": 16384}
"""The largest value of each field: a file that asks for more asks for no network of any paper."""

MAX_RESOLUTIONS = 12
"""The most multipliers, as 2048 pixels can be halved eleven times."""

MAX_WEIGHTS = 10_000_000_000
"""The most weights of all convolutions together, 40 GB in float32."""


@register
@dataclass(frozen=True)
class UNet:
    """A U-Net on square images, by default that of E-TSDM's Table A1 (ADM with BigGAN up- and downsampling).

    `multipliers` widen `base` at each resolution, halving the image between them; `attention` lists the image sizes
    with self-attention (the innermost size always has one block), with `head_channels` channels a head;
    `time_channels` is the width of the layers that embed the condition; `resample` halves and doubles the image with
    a residual block (BigGAN's) or one convolution; `scale_shift` lets the condition scale the features. On the CPU,
    channels in multiples of 16 and attention at sizes of at most 8 are fast.

    Raises ArgumentError where the size cannot be halved often enough, channels do not divide into groups and heads, or
    a number is larger than any network's.

    Reference: Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, NeurIPS 2021.
    """

    size: int = 256
    channels: int = 3
    base: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    blocks: int = 2
    attention: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    time_channels: int = 512
    resample: Literal["resnet", "conv"] = "resnet"
    scale_shift: bool = True

    def __post_init__(self) -> None:
        self._check_kinds()
        self._check_limits()
        if not self._fits(self.size):
            attention = f" and reach {self.attention} for attention" if self.attention else ""
            raise ArgumentError(
                f"image size {self.size} must be divisible by {2**self._halvings}{attention}, "
                f"because this network halves it {self._halvings} times; use --size {self._near()}"
            )
        for width in {self.base * multiplier for multiplier in self.multipliers}:
            if width % self._groups or width % self.head_channels:
                raise ArgumentError(
                    f"{width} channels do not divide into {self._groups} groups and heads of {self.head_channels} "
                    "channels; change base or head_channels"
                )

    def _check_kinds(self) -> None:
        """Raises ArgumentError where a field is of another type than it says."""
        if not isinstance(self.multipliers, tuple) or not isinstance(self.attention, tuple):
            raise ArgumentError(f"multipliers and attention are tuples, got {self.multipliers} and {self.attention}")
        fields = (*(getattr(self, name) for name in LIMITS), *self.multipliers, *self.attention)
        if not self.multipliers or any(type(value) is not int or value < 1 for value in fields):
            raise ArgumentError(f"a U-Net is made of positive integers, got {self}")
        if self.resample not in ("resnet", "conv"):
            raise ArgumentError(f"unknown resample {self.resample!r}; known: conv, resnet")
        if type(self.scale_shift) is not bool:
            raise ArgumentError(f"scale_shift is true or false, got {self.scale_shift!r}")

    def _check_limits(self) -> None:
        """Raises ArgumentError where no machine could hold the network."""
        if len(self.multipliers) > MAX_RESOLUTIONS:
            raise ArgumentError(f"{len(self.multipliers)} multipliers; a U-Net takes at most {MAX_RESOLUTIONS}")
        for name, limit in LIMITS.items():
            if getattr(self, name) > limit:
                raise ArgumentError(f"{name} {getattr(self, name)} is too large for a U-Net; take at most {limit}")
        if (weights := self._weights()) > MAX_WEIGHTS:
            raise ArgumentError(
                f"base {self.base}, multipliers {self.multipliers} and {self.blocks} blocks make over {weights:,} "
                f"weights, more than {MAX_WEIGHTS:,}; take a smaller base, or fewer blocks"
            )

    def _weights(self) -> int:
        """Fewer than the network has: two convolutions of 3 x 3 a block, where no channels join from the other side."""
        return sum(18 * (self.base * multiplier) ** 2 * (2 * self.blocks + 1) for multiplier in self.multipliers)

    @property
    def _halvings(self) -> int:
        return len(self.multipliers) - 1

    def _sizes(self, size: int) -> list[int]:
        return [size // 2**level for level in range(len(self.multipliers))]

    def _fits(self, size: int) -> bool:
        return size % 2**self._halvings == 0 and set(self.attention) <= set(self._sizes(size))

    def _near(self) -> str:
        """The nearest sizes below and above that fit, for an error message."""
        step = 2**self._halvings
        fitting = [size for size in range(step, LIMITS["size"] + 1, step) if self._fits(size)]
        below, above = [size for size in fitting if size < self.size], [size for size in fitting if size > self.size]
        return " or ".join(str(size) for size in (*below[-1:], *above[:1])) or "another, or other attention"

    @property
    def _groups(self) -> int:
        return max(1, min(32, self.base // 4))  # one channel a group would hide the brightness

    def build(self) -> nn.Module:
        """A fresh network F = network(x (B, channels, size, size), c (B,)), weights from torch's global generator."""
        from diffusers import UNet2DModel

        down = {"resnet": "ResnetDownsampleBlock2D", "conv": "DownBlock2D"}[self.resample]
        up = {"resnet": "ResnetUpsampleBlock2D", "conv": "UpBlock2D"}[self.resample]
        sizes = self._sizes(self.size)
        unet = UNet2DModel(
            sample_size=self.size,
            in_channels=self.channels,
            out_channels=self.channels,
            block_out_channels=tuple(self.base * multiplier for multiplier in self.multipliers),
            layers_per_block=self.blocks,
            down_block_types=tuple("AttnDownBlock2D" if size in self.attention else down for size in sizes),
            up_block_types=tuple("AttnUpBlock2D" if size in self.attention else up for size in reversed(sizes)),
            downsample_type=self.resample,
            upsample_type=self.resample,
            attention_head_dim=self.head_channels,
            resnet_time_scale_shift="scale_shift" if self.scale_shift else "default",
            time_embedding_dim=self.time_channels,
            norm_num_groups=self._groups,
            attn_norm_num_groups=self._groups,  # diffusers drops the middle attention's norm without it
            norm_eps=1e-5,
            flip_sin_to_cos=True,
            freq_shift=0,
        )
        return _Network(unet).to(torch.float32, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


class _Network(nn.Module):
    """UNet2DModel behind the door F = network(x, c); zero at the start, as ADM is."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        for name, module in unet.named_modules():  # the last layer of each block says nothing yet
            if name == "conv_out" or name.endswith((".conv2", ".to_out.0")):
                for parameter in module.parameters():
                    nn.init.zeros_(parameter)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        if x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)  # up to 1.7 times faster convolutions there
        return self.unet(x, c, return_dict=False)[0]

    def checkpoint(self) -> None:
        """Computes each block's features again in the backward pass instead of keeping them: less memory, more time."""
        self.unet.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue]
