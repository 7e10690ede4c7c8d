"""Commands for the models of this computer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bluesky_symdenoise.cli.root import app

models = typer.Typer(
    no_args_is_help=True, help="Models of this computer: the package's, and your own in SYMDENOISE_MODELS."
)
app.add_typer(models, name="models")

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of a model.")]


@models.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list of the records.")] = False,
) -> None:
    """List name, version, sha256 and parent of each model."""
    from bluesky_symdenoise.denoiser import registry
    from bluesky_symdenoise.errors import SymDenoiseError

    records = []
    for name in [*registry.available(), *registry.registered()]:
        try:
            found = registry.entry(name)
        except SymDenoiseError as error:
            typer.echo(f"symdenoise: {error}", err=True)
            continue
        records.append({**found.record, "name": name, "shipped": found.shipped})
    if as_json:
        typer.echo(json.dumps(records, indent=2))
        return
    typer.echo(f"{'name':<24}{'version':<10}{'sha256':<14}from")
    for record in records:
        parent = record.get("lineage", {}).get("parent")
        origin = "package" if record["shipped"] else f"tuned from {parent['name']}" if parent else "imported"
        typer.echo(f"{record['name']:<24}{record['version']:<10}{record['sha256'][:12]:<14}{origin}")


@models.command()
def show(name: Name) -> None:
    """Show a model's card and identity."""
    from bluesky_symdenoise.denoiser import registry

    found = registry.entry(name)
    typer.echo(found.card)
    typer.echo(f"sha256 {found.sha256}")
    typer.echo(f"file   {found.weights}")


@models.command("import")
def import_model(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="NAME.safetensors; NAME.json lies beside it. Or a wheel of bluesky-symdenoise, for that version's "
            "weights.",
        ),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model on this computer; not for a wheel.")] = None,
) -> None:
    """Add an exported or trained model, or those of an earlier version, to your own models, after checking them."""
    from bluesky_symdenoise.denoiser.weights import import_model as take
    from bluesky_symdenoise.denoiser.wheel import import_wheel
    from bluesky_symdenoise.errors import SymDenoiseError

    if file.suffix == ".whl" and name is not None:
        raise SymDenoiseError(f"--name {name}", rule="a wheel names its models itself", remedy="leave --name out")
    for found in import_wheel(file) if file.suffix == ".whl" else [take(file, name=name)]:
        typer.echo(f"{found.name}: {found.sha256[:12]} in {found.weights.parent}")


@models.command()
def export(
    name: Name,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path(),
) -> None:
    """Write a model's weights, record and card into a folder, for `symdenoise models import` elsewhere."""
    from bluesky_symdenoise.denoiser import registry

    typer.echo(registry.export(name, output))


@models.command()
def remove(name: Name) -> None:
    """Delete a model of your own; runs that were made with it cannot be computed again without it."""
    from bluesky_symdenoise.denoiser import registry

    typer.echo(f"{name}: {registry.remove(name).sha256[:12]} removed")
