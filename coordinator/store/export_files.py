"""Rows of measurements as CSV or Parquet. A file is complete, or it is not there."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from fleetnas.coordinator.store.exported_fields import Field, Value
from fleetnas.coordinator.store.measurement_table import csv_cell
from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_extra

Format = Literal["csv", "parquet"]
Rows = Iterable[Mapping[str, Value]]

#: Rows of one row group of a Parquet file, and in memory at once.
_GROUP = 2000


def write_rows(rows: Rows, fields: Sequence[Field], path: Path, form: Format) -> int:
    """Write `fields` of the rows; returns the number of rows.

    Raises:
        UsageError: the file cannot be written.
        MissingDependencyError: Parquet without pyarrow.
    """
    write = _parquet_writer(fields) if form == "parquet" else _csv_writer(fields)
    unfinished = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            count = write(rows, unfinished)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {reason_of(error)}; make room there, or give another -o"
        ) from error
    return count


def _csv_writer(fields: Sequence[Field]) -> Callable[[Rows, Path], int]:
    def write(rows: Rows, path: Path) -> int:
        count = 0
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([field.name for field in fields])
            for count, row in enumerate(rows, 1):  # noqa: B007
                writer.writerow([_cell(row[field.name]) for field in fields])
        return count

    return write


def _cell(value: Value) -> str:
    if isinstance(value, tuple):
        return " ".join(repr(number) for number in value)
    return csv_cell(value)


def _parquet_writer(fields: Sequence[Field]) -> Callable[[Rows, Path], int]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependencyError(
            f"Parquet needs pyarrow, which is not installed; run `{install_extra('parquet')}`, or give --format csv"
        ) from error
    types: dict[str, Any] = {
        "text": pa.string(),
        "integer": pa.int64(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "numbers": pa.list_(pa.float64()),
    }
    schema = pa.schema([(field.name, types[field.kind]) for field in fields])

    def write(rows: Rows, path: Path) -> int:
        count, rest = 0, iter(rows)
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            while group := list(islice(rest, _GROUP)):
                columns = {field.name: [row[field.name] for row in group] for field in fields}
                writer.write_table(pa.table(columns, schema=schema))
                count += len(group)
        return count

    return write
