"""Log a training: a JSON object for each epoch, and TensorBoard's events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.errors import MissingDependencyError
from fleetnas.fleet_protocol.installing import install_extra
from fleetnas.supernet_export.output_files import write_atomically


class RunLog:
    """Writes both logs; a resumed training goes on behind its last checkpoint."""

    def __init__(self, jsonl: Path, board: Path, done_epochs: int) -> None:
        """Open the logs and cut off all epochs after `done_epochs`, which will be trained again."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError(
                f"training needs tensorboardX, which is not installed; run: {install_extra('train')}"
            ) from error
        self._jsonl = jsonl
        if jsonl.is_file():
            kept = [line for line in jsonl.read_text(encoding="utf-8").splitlines() if _epoch(line) <= done_epochs]
            write_atomically(jsonl, "".join(f"{line}\n" for line in kept).encode())
        self._board = SummaryWriter(str(board), purge_step=done_epochs + 1)

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append an epoch; numbers become TensorBoard's scalars, those in dictionaries under both names."""
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in entry.items():
            if isinstance(value, Mapping):
                for inner, number in value.items():
                    self._board.add_scalar(f"{name}/{inner}", number, entry["epoch"])
            elif isinstance(value, (int, float)) and name != "epoch":
                self._board.add_scalar(name, value, entry["epoch"])
        self._board.flush()

    def close(self) -> None:
        """Close TensorBoard's file."""
        self._board.close()


def _epoch(line: str) -> float:
    """Return the epoch of a line; infinity where it was cut off."""
    try:
        return float(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
