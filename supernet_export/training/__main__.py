"""`python -m fleetnas.supernet_export.training digits`: train the built-in supernet and fit its accuracy predictor."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import get_args

from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.digits.accuracy import EVALUATED_PATH, PREDICTOR_PATH
from fleetnas.supernet_export.export import DIGITS_CHECKPOINT, export_digits
from fleetnas.supernet_export.training.published_schedules import ScheduleName, published_schedule


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status: 0, or that of the error, whose message goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m fleetnas.supernet_export.training", description=__doc__)
    parser.add_argument("supernet", choices=["digits"])
    parser.add_argument("--only", choices=["train", "accuracy"], help="one of the two parts; both by default")
    parser.add_argument(
        "--out", type=Path, default=DIGITS_CHECKPOINT.parent, help="where the files go; by default into the package"
    )
    parser.add_argument(
        "--schedule",
        choices=get_args(ScheduleName),
        help="a published schedule in place of the built-in recipe: OFA's progressive shrinking, or CompOFA's compound "
        "one; needs --out, and also writes digits.supernet there",
    )
    parser.add_argument("--epochs", type=int, default=8, help="of the schedule's full phases (default: 8)")
    options = parser.parse_args(arguments)
    if options.schedule is not None and options.out == DIGITS_CHECKPOINT.parent:
        parser.error("--schedule trains another supernet than the built-in one: give --out DIR")
    if options.epochs < 2:
        parser.error("--epochs must be 2 or more")
    checkpoint = options.out / DIGITS_CHECKPOINT.name
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.only != "accuracy":
            _train(checkpoint, options.schedule, options.epochs)
        if options.only != "train":
            predictor = _accuracy(checkpoint, options.out)
            if options.schedule is not None:
                _export(checkpoint, predictor, options.out / "digits.supernet")
    except FleetnasError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _train(checkpoint: Path, schedule: ScheduleName | None, epochs: int) -> None:
    from safetensors.numpy import save

    from fleetnas.supernet_export.spaces.digits import DigitsSpace
    from fleetnas.supernet_export.training.digits import SCHEDULE, state_arrays, train_digits
    from fleetnas.supernet_export.training.trainer import Progress

    started = time.monotonic()

    def report(progress: Progress) -> None:
        elapsed = time.monotonic() - started
        _print(
            f"epoch {progress.epoch}/{progress.epochs} ({progress.phase}): loss of the largest subnet "
            f"{progress.loss:.3f}, {elapsed:.0f} s"
        )

    phases = SCHEDULE if schedule is None else published_schedule(schedule, DigitsSpace(), epochs)
    checkpoint.write_bytes(save(state_arrays(train_digits(phases, report))))
    _print(f"{checkpoint}: {checkpoint.stat().st_size:,} bytes, {time.monotonic() - started:.0f} s")


def _accuracy(checkpoint: Path, out: Path) -> AccuracyPredictor:
    from fleetnas.supernet_export.digits.accuracy import save_evaluated, save_predictor
    from fleetnas.supernet_export.training.digits_accuracy import evaluate_digits, fit_digits

    started = time.monotonic()
    subnets = []
    for done, total, subnet in evaluate_digits(checkpoint):
        subnets.append(subnet)
        if done % 50 == 0 or done == total:
            _print(f"evaluated {done}/{total} subnets, {time.monotonic() - started:.0f} s")
    save_evaluated(out / EVALUATED_PATH.name, subnets)
    predictor = fit_digits(subnets)
    save_predictor(out / PREDICTOR_PATH.name, predictor)
    held_out = predictor.held_out
    assert held_out is not None
    _print(
        f"accuracy predictor, on {held_out.held_out} subnets held out: rank correlation {held_out.spearman:.3f}, "
        f"mean absolute error {held_out.mae_percent:.2f} %, {time.monotonic() - started:.0f} s"
    )
    return predictor


def _export(checkpoint: Path, predictor: AccuracyPredictor, path: Path) -> None:
    sha256 = export_digits(path, checkpoint, predictor)
    _print(f"{path}: the bundle, SHA-256 {sha256}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
