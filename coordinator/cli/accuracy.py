"""`fleetnas accuracy`: evaluate subnets, and fit an accuracy predictor to them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.accuracy_evaluate import evaluate
from fleetnas.supernet_export.output_files import check_file


def register(app: typer.Typer) -> None:
    """Add the command."""
    group = typer.Typer(help="Accuracy predictors.", no_args_is_help=True)
    group.command("evaluate")(evaluate)
    group.command("fit")(fit)
    app.add_typer(group, name="accuracy")


def fit(
    samples: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Evaluated subnets: a .csv (ks, e, d, r, top1_percent), or .jsonl of `evaluate --json`.",
        ),
    ],
    space: Annotated[str, typer.Option("--space", metavar="NAME", help="Their design space.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The predictor, a .safetensors file.")],
    space_options: Annotated[str, typer.Option("--options", metavar="JSON", help="The space's options.")] = "{}",
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes which are held out.")] = 0,
) -> None:
    """Fit an accuracy predictor to evaluated subnets.

    Some are held out, to say how well it predicts others.
    """
    import numpy as np

    from fleetnas.supernet_export.accuracy.fit import fit_accuracy, read_evaluated
    from fleetnas.supernet_export.spaces.registry import make_space

    made = make_space(space, options.json_object("--options", space_options))
    check_file("--output", output, ".safetensors", strict=True)
    genomes, top1 = read_evaluated(samples, made)
    predictor = fit_accuracy(made, genomes, top1, np.random.default_rng(seed))
    found = predictor.held_out
    assert found is not None
    typer.echo(
        f"fitted to {found.samples} of {len(genomes)} evaluated subnets\n"
        f"on the other {found.held_out}, held out: rank correlation {found.spearman:.3f}, "
        f"mean error {found.mae_percent:.2f} points, root-mean-square error {found.rmse_percent:.2f} points"
    )
    predictor.save(output)
    typer.echo(f"{output}: the predictor")
