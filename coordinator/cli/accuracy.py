"""`fleetnas accuracy`: evaluate subnets, and fit an accuracy predictor to them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.accuracy_evaluate import evaluate
from fleetnas.coordinator.cli.command_classes import CommandApp
from fleetnas.coordinator.cli.option_groups import command
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.output_files import check_file

if TYPE_CHECKING:
    from fleetnas.supernet_export.accuracy.fit import FitResult
    from fleetnas.supernet_export.bundle import SupernetBundle
    from fleetnas.supernet_export.evaluation.evaluation_file import EvaluationHeader
    from fleetnas.supernet_export.spaces.base import DesignSpace


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = CommandApp(help="Accuracy of subnets: evaluate many, fit a predictor.", no_args_is_help=True)
    group.command("evaluate")(command(evaluate))
    group.command("fit")(fit)
    app.add_typer(group, name="accuracy")


def fit(
    samples: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="Evaluated subnets: .jsonl of `accuracy evaluate` (all its shards) or `evaluate --json`, or a .csv "
            "(ks, e, d, r, top1_percent).",
        ),
    ],
    bundle: Annotated[
        Path | None, typer.Option("--bundle", metavar="BUNDLE", help="Put the predictor into this .supernet file.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to a .safetensors file.")
    ] = None,
    space: Annotated[
        str | None, typer.Option("--space", metavar="NAME", help="Design space of the subnets, if no file says it.")
    ] = None,
    space_options: Annotated[
        str | None, typer.Option("--options", metavar="JSON", help="Options of that space.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Fixes which are held out.")] = 0,
) -> None:
    """Fit an accuracy predictor to evaluated subnets.

    Several kinds are compared by cross-validation, and the best one is fitted to all subnets. Its error is measured on
    subnets without which it was chosen and fitted.
    """
    import numpy as np

    from fleetnas.supernet_export.accuracy.fit import fit_evaluated
    from fleetnas.supernet_export.bundle import SupernetBundle
    from fleetnas.supernet_export.bundle_accuracy import put_accuracy_predictor
    from fleetnas.supernet_export.evaluation.evaluated_subnets import common_header, read_evaluations
    from fleetnas.supernet_export.evaluation.evaluation_file import supernet_digest

    if (bundle is None) == (output is None):
        raise UsageError("the predictor goes into a bundle or a file of its own: give --bundle BUNDLE, or -o FILE")
    if output is not None:
        check_file("--output", output, ".safetensors", strict=True)
    opened = None if bundle is None else SupernetBundle.open(bundle)
    header = common_header(samples)
    made = _space(opened, header, samples, space, space_options)
    if bundle is not None:
        check_file("--bundle", bundle, ".supernet", strict=True)
    supernet = supernet_digest(opened) if opened is not None else header.supernet_digest if header is not None else None
    subnets = read_evaluations(samples, made, supernet)
    typer.echo(f"fitting to {len(subnets):,} evaluated subnets ...", err=True)
    found = fit_evaluated(made, subnets, np.random.default_rng(seed))
    typer.echo("\n".join(_lines(found)))
    if output is not None:
        found.predictor.save(output, made)
        typer.echo(f"{output}: the predictor")
    if opened is not None:
        source = f"{found.chosen}, fitted to {len(subnets):,} evaluated subnets"
        typer.echo(
            f"{bundle}: holds the predictor now, SHA-256 {put_accuracy_predictor(opened, found.predictor, source)}"
        )


def _space(
    bundle: SupernetBundle | None,
    header: EvaluationHeader | None,
    samples: list[Path],
    space: str | None,
    space_options: str | None,
) -> DesignSpace:
    """Return the design space of the subnets; `UsageError` where it is said nowhere, twice, or is another bundle's."""
    from fleetnas.supernet_export.evaluation.evaluation_file import supernet_digest
    from fleetnas.supernet_export.spaces.registry import make_space

    if space_options is not None and space is None:
        raise UsageError("--options belongs to --space; give both, or neither")
    known = "the bundle" if bundle is not None else f"{samples[0]}" if header is not None else None
    if known is not None and space is not None:
        raise UsageError(f"{known} says which design space it is; leave out --space")
    if bundle is not None:
        if header is not None and header.supernet_digest != supernet_digest(bundle):
            raise UsageError(
                f"{samples[0]} holds subnets of another supernet than {bundle.path}: weights, space or preprocessing "
                "differ; evaluate subnets of this one: fleetnas accuracy evaluate"
            )
        return bundle.space
    if header is not None:
        return make_space(header.space, header.options)
    if space is None:
        raise UsageError(f"{samples[0]} does not say its design space; give --space NAME, or --bundle BUNDLE")
    return make_space(space, options.json_object("--options", space_options or "{}"))


def _lines(found: FitResult) -> list[str]:
    """Format what was compared and how well the chosen kind predicts."""
    error = found.predictor.held_out
    assert error is not None
    lines = [f"{score:6.3f}  {name}" for name, score in sorted(found.compared.items(), key=lambda item: -item[1])]
    lines = ["rank correlation in cross-validation:", *lines, f"chosen: {found.chosen}"]
    lines.append(
        f"on {error.held_out:,} held-out subnets, by fits to {error.samples:,} others: rank correlation "
        f"{error.spearman:.3f}, mean error {error.mae_percent:.2f} points, root-mean-square error "
        f"{error.rmse_percent:.2f} points"
    )
    if error.ceiling is not None and error.reliability is not None:
        lines.append(
            f"noise of the evaluation: split-half reliability {error.reliability:.3f}, so that a perfect prediction "
            f"would reach about {error.ceiling:.3f} (on other images of the same kind)"
        )
    return lines
