"""`python -m fleetnas.supernet_export.training digits`: train the built-in supernet and fit its accuracy predictor."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from fleetnas.fleet_protocol.errors import FleetnasError
from fleetnas.supernet_export.digits.accuracy import EVALUATED_PATH, PREDICTOR_PATH
from fleetnas.supernet_export.export import DIGITS_CHECKPOINT


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status: 0, or that of the error, whose message goes to standard error."""
    parser = argparse.ArgumentParser(prog="python -m fleetnas.supernet_export.training", description=__doc__)
    parser.add_argument("supernet", choices=["digits"])
    parser.add_argument("--only", choices=["train", "accuracy"], help="one of the two parts; both by default")
    parser.add_argument(
        "--out", type=Path, default=DIGITS_CHECKPOINT.parent, help="where the files go; by default into the package"
    )
    options = parser.parse_args(arguments)
    checkpoint = options.out / DIGITS_CHECKPOINT.name
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if options.only != "accuracy":
            _train(checkpoint)
        if options.only != "train":
            _accuracy(checkpoint, options.out)
    except FleetnasError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _train(checkpoint: Path) -> None:
    from safetensors.numpy import save

    from fleetnas.supernet_export.training.digits import SCHEDULE, state_arrays, train_digits
    from fleetnas.supernet_export.training.trainer import Progress

    started = time.monotonic()

    def report(progress: Progress) -> None:
        elapsed = time.monotonic() - started
        _print(
            f"epoch {progress.epoch}/{progress.epochs} ({progress.phase}): loss of the largest subnet "
            f"{progress.loss:.3f}, {elapsed:.0f} s"
        )

    checkpoint.write_bytes(save(state_arrays(train_digits(SCHEDULE, report))))
    _print(f"{checkpoint}: {checkpoint.stat().st_size:,} bytes, {time.monotonic() - started:.0f} s")


def _accuracy(checkpoint: Path, out: Path) -> None:
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


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
