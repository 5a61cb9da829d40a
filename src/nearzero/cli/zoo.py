"""nearzero zoo."""

from __future__ import annotations

from typing import Any

import click

from nearzero.cli.common import emit, json_option


@click.command()
@json_option
def command(as_json: bool) -> None:
    """List the trained models that come with the package, each a run called zoo:NAME.

    \b
    nearzero zoo
    nearzero sample zoo:etsdm -n 64 --out samples
    nearzero diagnose zoo:etsdm --against zoo:ddpm --html

    Small networks, trained for about an hour on a CPU: they show what the methods do, not how good they can be.
    zoo:NAME stands for a run in every command; what is measured of it lies in zoo-NAME, in the current directory.
    """
    from nearzero import zoo
    from nearzero.cli.compare import as_text
    from nearzero.report.measured import measured

    models: dict[str, dict[str, Any]] = {}
    for name in zoo.names():
        card = measured(zoo.path(name)).check().cards.get("fd")
        told = None if card is None else {**card.subject, **card.protocol}
        distance = told and {"text": card and card.text(), "evaluations": told.get("network_evaluations")}
        models[name] = {**zoo.card(name), "path": str(zoo.path(name)), "distance": distance}
    document = {"command": "zoo", "models": models}
    header = ("model", "recipe", "images", "images seen", "parameters", "file", "distance to real images")
    text = as_text(header, [_row(name, one) for name, one in models.items()])
    emit(document, text if models else "this package has no models", as_json)


def _row(name: str, one: dict[str, Any]) -> tuple[str, ...]:
    """A model as cells."""
    data, distance = one["data"], one["distance"]
    return (
        f"zoo:{name}",
        one["recipe"],
        f"{data['name']}, {one['size']} x {one['size']}",
        f"{one['images_seen']:,}",
        f"{one['parameters']:,}",
        f"{one['bytes'] / 1e6:.1f} MB",
        "not measured" if distance is None else f"{distance['text']}, {distance['evaluations']:g} evaluations",
    )
