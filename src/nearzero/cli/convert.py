"""nearzero convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nearzero.cli.common import emit, json_option, say
from nearzero.errors import ArgumentError


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--i-trust-this-file", "trust", is_flag=True, help="Read a file that holds a pickle; nothing of it is run."
)
@click.option("--size", type=int, metavar="S", help="Of an ADM U-Net's images, in pixels.")
@click.option("--head-channels", type=int, metavar="C", help="Channels of a head of attention.  [default: 64]")
@click.option("--heads", type=int, metavar="H", help="Heads, in place of --head-channels.")
@click.option(
    "--new-attention-order/--legacy-attention-order",
    "new_order",
    default=None,
    help="How q, k and v lie in one layer.  [default: legacy, as in the published LSUN and ImageNet models]",
)
@click.option("--schedule", type=click.Choice(["linear", "cosine"]), help="Of the betas.  [default: linear]")
@click.option("--weights", metavar="NAME", help="Which ADM U-Net, where the file holds several.")
@click.option("--overwrite", is_flag=True, help="Replace a DIR that convert wrote.")
@json_option
def command(
    file: Path,
    out: Path,
    trust: bool,
    size: int | None,
    head_channels: int | None,
    heads: int | None,
    new_order: bool | None,
    schedule: str | None,
    weights: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Take the tensors out of FILE, a checkpoint that holds a pickle, without running any of it.

    \b
    nearzero convert lsun.pt converted --size 256 --i-trust-this-file
    nearzero convert network.pkl tensors --i-trust-this-file

    A guided-diffusion (ADM) checkpoint becomes a pipeline of diffusers; of any other, DIR gets one safetensors file for
    each state dict. FILE is read in a process of its own, without network, and nothing that it names is imported.
    """
    from nearzero.interop.convert import convert

    options = _options(size, head_channels, heads, new_order, schedule)
    found = convert(file, out, trust=trust, adm=options, weights=weights, overwrite=overwrite)
    if found.kind == "tensors" and options is not None:
        say("note: --size and the other options of an ADM U-Net change nothing: this file holds none")
    document = {"command": "convert", "file": str(file), "out": str(out), "kind": found.kind, "source": found.source}
    emit(document, text(out, found.kind, found.source), as_json)


def _options(
    size: int | None, head_channels: int | None, heads: int | None, new_order: bool | None, schedule: str | None
) -> Any:
    """What the shapes of an ADM U-Net do not tell, or None where nothing is said. Raises ArgumentError."""
    from nearzero.interop.adm import AdmOptions

    order = {None: None, True: "new", False: "legacy"}[new_order]
    given = {"head_channels": head_channels, "heads": heads, "order": order, "schedule": schedule}
    said = {name: value for name, value in given.items() if value is not None}
    if head_channels is not None and heads is not None:
        raise ArgumentError("--head-channels and --heads say the same; give one of them")
    if size is None:
        if said:
            raise ArgumentError("the options of an ADM U-Net need its --size too")
        return None
    return AdmOptions(size, **said)


def text(out: Path, kind: str, source: dict[str, Any]) -> str:
    """What was found and where it lies now."""
    if kind == "adm":
        network = source["network"]
        config = network["config"]
        attention = [
            config["sample_size"] // 2**level
            for level, block in enumerate(config["down_block_types"])
            if block.startswith("Attn")
        ]
        lines = [
            f"an ADM U-Net of {network['parameters']:,} parameters for {config['sample_size']} x "
            f"{config['sample_size']} images, as a DDPMPipeline: {out}",
            f"  channels {config['block_out_channels']}, {config['layers_per_block']} blocks, attention at {attention}",
            f"  taken on trust, as no shape tells: {config['attention_head_dim'] or 'all'} channels a head, q, k and v "
            f"in the {network['order']} order, {network['schedule']} betas",
            f"  open it with diffusers.DDPMPipeline.from_pretrained({str(out)!r}) or nz.from_diffusers({str(out)!r})",
        ]
        classes = config["num_class_embeds"]
        return "\n".join([*lines, *([f"  it takes class_labels, {classes} classes"] if classes else [])])
    lines = [f"{source['file']} is {source['kind']}; nearzero has no network for it, only its tensors were taken:"]
    for entry in source["state_dicts"]:
        left = f", {len(entry['left_out'])} left out" if entry["left_out"] else ""
        lines.append(f"  {out / entry['file']}: {entry['tensors']:,} tensors, {entry['numbers']:,} numbers{left}")
    return "\n".join([*lines, f"  {out / 'source.json'}: where they come from"])
