"""Read evaluated subnets: files of `fleetnas accuracy evaluate`, lines of `fleetnas evaluate --json`, and tables."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fleetnas.device_profiles.text_files import open_text
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.accuracy.fit import EvaluatedSubnets
from fleetnas.supernet_export.evaluation.evaluation_file import EvaluationHeader, parse_header
from fleetnas.supernet_export.spaces.base import DesignSpace, Genomes

_LISTS = ("ks", "e", "d", "w")
#: What a line may tell beside its accuracy.
_MORE = ("cross_entropy", "accuracy_even", "accuracy_odd", "images")


@dataclass(frozen=True)
class _Row:
    architecture: Architecture
    accuracy: float
    more: dict[str, float]
    #: Digest of the supernet's weights where the line says it, and the line's place.
    supernet: str | None = None
    where: str = ""


def read_evaluated(path: Path | str, space: DesignSpace) -> tuple[Genomes, NDArray[np.float64]]:
    """Read genomes (n, G) and top-1 fractions (n,) from one file; see `read_evaluations`."""
    found = read_evaluations([Path(path)], space)
    return found.genomes, found.top1


def read_header(path: Path) -> EvaluationHeader | None:
    """Return the header of a file of `fleetnas accuracy evaluate`; None for other files."""
    try:
        with open_text(path) as file:
            return parse_header(next(iter(file), ""))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path, error) from None


def common_header(paths: Sequence[Path]) -> EvaluationHeader | None:
    """Return the first file's header; `UsageError` names what differs in another file, shards apart."""
    headers = [(path, found) for path in paths if (found := read_header(path)) is not None]
    if not headers:
        return None
    first_path, first = headers[0]
    for path, other in headers[1:]:
        different = first.differences(other, of_shards=True)
        if different:
            raise UsageError(
                f"{first_path} (there) and {path} (here) cannot be fitted together: {'; '.join(different)} differ; "
                "give the shards of one evaluation"
            )
    return first


def read_evaluations(paths: Sequence[Path], space: DesignSpace, supernet: str | None = None) -> EvaluatedSubnets:
    """Read the evaluated subnets of one or several files.

    A `.jsonl` file holds a line of `fleetnas accuracy evaluate` or of `fleetnas evaluate --json` for each. Any other is
    a CSV: columns `ks`, `e`, `d`, `w` hold numbers separated by spaces (those that the space has), `r` the resolution,
    and `top1_percent` or `top1` (a fraction) the accuracy. Of rows with one architecture the mean is taken. Rows at
    resolutions that the space does not have are left out, and so are subnets that failed.

    `supernet` is the `supernet_digest` that lines must have where they say it; without it they must agree.

    Raises:
        UsageError: a file cannot be read, or a row holds an architecture that is not in the space, or is of another
            supernet.
    """
    rows = [row for path in paths for row in _rows_of(path)]
    _check_supernet(rows, supernet)
    rows = [row for row in rows if row.architecture.r in space.resolutions]
    if not rows:
        raise UsageError(
            f"{', '.join(map(str, paths))[:200]} holds no evaluated subnets at "
            f"{', '.join(map(str, space.resolutions))} pixels; columns r, top1_percent and, of ks, e, d, w, those that "
            "the space has are needed"
        )
    encoded = space.encode([row.architecture for row in rows])
    genomes, inverse = np.unique(encoded, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    counts = np.bincount(inverse)
    more = {
        name: np.bincount(inverse, [row.more[name] for row in rows]) / counts
        if all(name in row.more for row in rows)
        else None
        for name in _MORE
    }
    images = more["images"]
    return EvaluatedSubnets(
        genomes=genomes.astype(np.int16),
        top1=np.bincount(inverse, [row.accuracy for row in rows]) / counts,
        cross_entropy=more["cross_entropy"],
        top1_even=more["accuracy_even"],
        top1_odd=more["accuracy_odd"],
        images=None if images is None else int(images.min()),
    )


def _check_supernet(rows: Sequence[_Row], supernet: str | None) -> None:
    for row in rows:
        if row.supernet is not None and row.supernet != supernet:
            if supernet is not None:
                raise UsageError(
                    f"{row.where} is a subnet of another supernet: its weights, space or preprocessing differ; remove "
                    "the line, or evaluate subnets of one supernet"
                )
            supernet = row.supernet


def _rows_of(path: Path) -> list[_Row]:
    try:
        with open_text(path) as file:
            return list(_json_lines(file, path) if path.suffix == ".jsonl" else _table(file, path))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path | str, error: Exception) -> UsageError:
    return UsageError(f"{path} cannot be read as a table of evaluated subnets: {reason_of(error)}; check the path")


def _json_lines(file: Iterable[str], path: Path) -> Iterator[_Row]:
    for number, line in enumerate(file, start=1):
        if not line.strip() or (number == 1 and parse_header(line) is not None):
            continue
        try:
            found = json.loads(line)
            if "failed" in found:
                continue
            supernet = found.get("supernet_digest")
            yield _Row(
                Architecture.model_validate(found["architecture"]),
                float(found["accuracy"]),
                _more(found),
                None if supernet is None else str(supernet),
                f"{path}, line {number}",
            )
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{path}, line {number} is no evaluated subnet ({reason}): each must be of `fleetnas accuracy "
                "evaluate` or `fleetnas evaluate --json`"
            ) from None


def _more(found: dict[str, Any]) -> dict[str, float]:
    return {name: float(found[name]) for name in _MORE if name in found}


def _table(file: Iterable[str], path: Path) -> Iterator[_Row]:
    for line, row in enumerate(csv.DictReader(file), start=2):
        yield _row(row, f"{path}, line {line}")


def _row(row: dict[str, str], where: str) -> _Row:
    try:
        parts = {key: tuple(float(part) for part in row[key].split()) for key in _LISTS if row.get(key)}
        architecture = Architecture.model_validate({**parts, "r": int(row["r"])})
        accuracy = float(row["top1"]) if row.get("top1") else float(row["top1_percent"]) / 100.0
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"{where} is no evaluated subnet ({reason}): columns r, top1_percent (or top1, a fraction) and, of ks, e, "
            "d, w, those that the space has are needed, lists separated by spaces"
        ) from None
    return _Row(architecture, accuracy, {})
