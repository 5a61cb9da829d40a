"""ADM's state dicts, by their names, as diffusers' UNet2DModel.

Reference: Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, NeurIPS 2021.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from nearzero.errors import ArgumentError, CheckpointError

MAX_SIZE = 4096
MAX_LEVELS = 12
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_PART = r"(in_layers\.[02]|emb_layers\.1|out_layers\.[03]|skip_connection|norm|qkv|proj_out|op|conv)"
_NAME = re.compile(
    rf"((time_embed\.[02]|label_emb|input_blocks\.0\.0|out\.[02])"
    rf"|((input|output)_blocks\.\d{{1,3}}\.[0-2]|middle_block\.[0-2])\.{_PART})\.(weight|bias)"
)
_PILLARS = {f"{name}.weight" for name in ("input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2")}


@dataclass(frozen=True)
class AdmOptions:
    """What the shapes of an ADM checkpoint do not tell.

    `size` of its images; channels of a head of attention, or their number, `heads`, in place of it; the order of q, k
    and v in one layer: "legacy" has them head by head, as the published LSUN and ImageNet checkpoints do, "new" all q
    first; `schedule` of its betas. Raises ArgumentError.
    """

    size: int
    head_channels: int = 64
    heads: int | None = None
    order: Literal["legacy", "new"] = "legacy"
    schedule: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        for name, value in (("size", self.size), ("head channels", self.head_channels), ("heads", self.heads or 1)):
            if type(value) is not int or not 1 <= value <= MAX_SIZE:
                raise ArgumentError(f"{name} {value!r} is no whole number from 1 to {MAX_SIZE}")
        if self.order not in ("legacy", "new") or self.schedule not in ("linear", "cosine"):
            raise ArgumentError(f"order {self.order!r} is legacy or new, schedule {self.schedule!r} linear or cosine")


def is_adm(names: Iterable[str]) -> bool:
    """Whether a state dict has the names of an ADM U-Net, all of them and no others.

    >>> is_adm(["conv_in.weight"])
    False
    """
    names = set(names)
    return names >= _PILLARS and any(name.startswith("output_blocks.") for name in names) and all(map(is_name, names))


def is_name(name: str) -> bool:
    """Whether a name is one of an ADM U-Net."""
    return _NAME.fullmatch(name) is not None


def configuration(tensors: Mapping[str, Tensor], options: AdmOptions) -> dict[str, Any]:
    """The arguments of a UNet2DModel that an ADM state dict was trained as, from its names, shapes and `options`.

    Raises CheckpointError for shapes that no such network has; ArgumentError where a size or heads do not fit them.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    blocks, levels = _counts(shape)
    try:
        widths = [shape[f"input_blocks.{1 + level * (blocks + 1)}.0.in_layers.2.weight"][0] for level in range(levels)]
        scale_shift = shape["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0]
        (time, base), (out, *_), (_, channels, *_) = (
            shape[f"{name}.weight"] for name in ("time_embed.0", "out.2", "input_blocks.0.0")
        )
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"its names are ADM's, but not its shapes: {error} is missing or wrong") from error
    if base != widths[0] or out not in (channels, 2 * channels) or channels == out == 6:
        raise CheckpointError(
            f"an ADM U-Net of {channels} channels in and {out} out, {widths[0]} inside and {base} of time, is no "
            "image model that a DDPMPipeline runs; one for super-resolution, which takes two images, is not converted"
        )
    if options.size % 2 ** (levels - 1):
        raise ArgumentError(f"--size {options.size} must be divisible by {2 ** (levels - 1)}: it is halved so often")
    attention = [f"input_blocks.{1 + level * (blocks + 1)}.1.qkv.weight" in shape for level in range(levels)]
    resample = "conv" if any(name.endswith((".op.weight", ".conv.weight")) for name in shape) else "resnet"
    plain = {"resnet": ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D"), "conv": ("DownBlock2D", "UpBlock2D")}
    down, up = plain[resample]
    return {
        "sample_size": options.size,
        "in_channels": channels,
        "out_channels": out,
        "block_out_channels": tuple(widths),
        "layers_per_block": blocks,
        "down_block_types": tuple("AttnDownBlock2D" if here else down for here in attention),
        "up_block_types": tuple("AttnUpBlock2D" if here else up for here in reversed(attention)),
        "downsample_type": resample,
        "upsample_type": resample,
        "attention_head_dim": _head_channels(shape, options),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "time_embedding_dim": time,
        "num_class_embeds": shape.get("label_emb.weight", (None,))[0],
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,  # diffusers drops the middle attention's norm without it
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }


def to_unet(tensors: Mapping[str, Tensor], options: AdmOptions) -> Any:
    """The UNet2DModel with an ADM state dict's weights, in float32, ready to sample.

    Raises CheckpointError where the names or shapes are not those of the network that the rest of them describe.
    """
    from diffusers import UNet2DModel

    arguments = configuration(tensors, options)
    try:
        with torch.device("meta"):
            unet = UNet2DModel(**arguments)
    except (ValueError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(f"its shapes are those of no ADM U-Net: {' '.join(str(error).split())}") from error
    found = dict(renamed(tensors, arguments, options.order))
    there = {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name in sorted(there.keys() | given.keys()):
        if there.get(name) != given.get(name):
            raise CheckpointError(
                f"its names are ADM's, but {name} has shape {given.get(name)} where the network that the others "
                f"describe has {there.get(name)}; restore the file"
            )
    unet.load_state_dict(found, assign=True)
    return unet.eval()


def renamed(tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], order: str) -> Iterator[tuple[str, Tensor]]:
    """Every weight under its name in diffusers, in float32; q, k and v apart, convolutions of width 1 as linear."""
    for name, tensor in tensors.items():
        place, kind = name.rsplit(".", 1)
        tensor = tensor.float()
        if place in _ENDS:
            yield f"{_ENDS[place]}.{kind}", tensor
            continue
        block, part = _split(place)
        home = _home(block, part, arguments["layers_per_block"])
        if part == "qkv":
            for letter, piece in zip("qkv", _apart(tensor, arguments["attention_head_dim"], order), strict=True):
                yield f"{home}.to_{letter}.{kind}", piece
        elif part == "proj_out":
            yield f"{home}.to_out.0.{kind}", _linear(tensor)
        else:
            yield f"{home}.{({'norm': 'group_norm', 'op': 'conv', 'conv': 'conv'} | _RESNET)[part]}.{kind}", tensor


def _split(place: str) -> tuple[str, str]:
    """The block and the part of it: "input_blocks.3.0", "in_layers.2"."""
    depth = 2 if place.startswith("middle_block") else 3
    parts = place.split(".")
    return ".".join(parts[:depth]), ".".join(parts[depth:])


def _home(block: str, part: str, blocks: int) -> str:
    """Where in diffusers a block of ADM's lies: a level is `blocks` blocks and a halving, or one more and doubling."""
    attention = part in ("norm", "qkv", "proj_out")
    if block.startswith("middle_block."):
        which = int(block.split(".")[1])
        return "mid_block.attentions.0" if attention else f"mid_block.resnets.{which // 2}"
    side, number, index = block.split(".")
    down = side == "input_blocks"
    level, place = divmod(int(number) - down, blocks + 1)
    home = f"{'down' if down else 'up'}_blocks.{level}"
    if attention:
        return f"{home}.attentions.{place}"
    if down and place == blocks:
        return f"{home}.downsamplers.0"
    if not down and index != "0":
        return f"{home}.upsamplers.0"
    return f"{home}.resnets.{place}"


def _counts(shape: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """(blocks, levels): the first doubling ends the first level of `blocks` + 1 on the way up."""
    total = len({name.split(".")[1] for name in shape if name.startswith("output_blocks.")})
    ups = [
        int(name.split(".")[1])
        for name in shape
        if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.2)\.weight", name)
    ]
    blocks = min(ups, default=total - 1)
    if blocks < 1 or total % (blocks + 1) or total // (blocks + 1) > MAX_LEVELS:
        raise CheckpointError(f"its names are ADM's, but {total} output blocks are no whole number of levels")
    return blocks, total // (blocks + 1)


def _head_channels(shape: Mapping[str, tuple[int, ...]], options: AdmOptions) -> int | None:
    """Channels of a head; None is one head of all. Raises ArgumentError where they do not divide the channels."""
    widths = {size[1] for name, size in shape.items() if name.endswith(".qkv.weight") and len(size) > 1}
    if options.heads == 1:
        return None
    if options.heads is not None and len(widths) > 1:
        raise ArgumentError(
            f"--heads {options.heads}: attention is on {sorted(widths)} channels, and a UNet2DModel has one number of "
            "channels a head, not of heads; give --head-channels"
        )
    channels = options.head_channels if options.heads is None else next(iter(widths), 1) // options.heads
    if channels < 1 or any(width % channels for width in widths):
        given = f"--head-channels {channels}" if options.heads is None else f"--heads {options.heads}"
        raise ArgumentError(f"{given} does not divide attention on {sorted(widths)} channels; give another")
    return channels


def _linear(tensor: Tensor) -> Tensor:
    return tensor.squeeze(-1) if tensor.dim() == 3 and tensor.shape[-1] == 1 else tensor


def _apart(tensor: Tensor, head_channels: int | None, order: str) -> tuple[Tensor, ...]:
    """q, k and v of one layer: [q k v] of each head ("legacy"), or all q, all k, all v ("new")."""
    tensor = _linear(tensor)
    if tensor.shape[0] % 3:
        raise CheckpointError(f"its attention has {tensor.shape[0]} channels for q, k and v together; restore the file")
    width = tensor.shape[0] // 3
    if order == "legacy":
        heads = 1 if head_channels is None else width // head_channels
        tensor = tensor.unflatten(0, (heads, 3, width // heads)).transpose(0, 1).flatten(0, 2)
    return tuple(part.contiguous() for part in tensor.chunk(3))
