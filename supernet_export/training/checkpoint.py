"""Keep a training on disk: its settings, and a checkpoint that replaces the one before at once or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from fleetnas.fleet_protocol.error_text import reason_of
from fleetnas.fleet_protocol.errors import CheckpointError, TrainingError, UsageError
from fleetnas.supernet_export.lock_file import only_one_process
from fleetnas.supernet_export.output_files import check_folder, write_atomically
from fleetnas.supernet_export.training.run_settings import TrainSettings

SETTINGS_NAME, CHECKPOINT_NAME, LOG_NAME, BOARD_NAME = "training.json", "checkpoint.pt", "training.jsonl", "tensorboard"
_CLAIM_NAME = ".claimed"
_VERSION = 1


class RunFolder:
    """A training's folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """The file of the last checkpoint."""
        return self.path / CHECKPOINT_NAME

    @property
    def log(self) -> Path:
        """The log, a JSON object for each epoch."""
        return self.path / LOG_NAME

    @contextmanager
    def claimed(self, resume: bool) -> Iterator[None]:
        """Hold the folder for one training, and make it if that is new; `UsageError` where another process has it."""
        if not resume:
            check_folder("--out", self.path)
        elif not self.path.is_dir():
            self.settings()  # says that there is no training
        with only_one_process(self.path / _CLAIM_NAME) as claimed:
            if not claimed:
                raise UsageError(
                    f"another process trains in --out {self.path}; wait for its end, or give the name of a new folder"
                )
            yield

    def prepare(self) -> None:
        """Check a new training's folder; `UsageError` if it is not empty, or cannot be written."""
        if self.path.is_dir() and any(entry.name != _CLAIM_NAME for entry in self.path.iterdir()):
            if (self.path / SETTINGS_NAME).is_file():
                raise UsageError(
                    f"--out {self.path} holds a training; continue it with --resume, or give the name of a new folder"
                )
            raise UsageError(f"--out {self.path} is not empty; give the name of a new folder")
        check_folder("--out", self.path)

    def settings(self) -> TrainSettings:
        """Return the settings of the training in this folder; `UsageError` where there is none."""
        path = self.path / SETTINGS_NAME
        if not path.is_file():
            raise UsageError(f"--out {self.path} holds no training to resume; check it, or leave --resume out")
        try:
            return TrainSettings.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({reason_of(error)}); begin a new training") from None

    def store_settings(self, settings: TrainSettings) -> None:
        """Write the settings."""
        text = json.dumps(json.loads(settings.model_dump_json()), indent=2)
        write_atomically(self.path / SETTINGS_NAME, text.encode())

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; `TrainingError` if it cannot be written, and the one before stays."""
        content = io.BytesIO()
        torch.save({"version": _VERSION, **state}, content)
        try:
            write_atomically(self.checkpoint, content.getvalue())
        except OSError as error:
            kept = "the checkpoint before it is kept" if self.checkpoint.is_file() else "there is none before it"
            raise TrainingError(
                f"the checkpoint {self.checkpoint} cannot be written: {error.strerror}; {kept}; make room, and go on "
                f"with: fleetnas train --resume --out {self.path}"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """Return the last checkpoint; None before the first. `CheckpointError` if it cannot be read."""
        if not self.checkpoint.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - a damaged file makes torch raise anything
            raise CheckpointError(
                f"{self.checkpoint} cannot be read: {' '.join(str(error).split())[:200]}; begin a new training"
            ) from None
        if state.get("version") != _VERSION:
            raise CheckpointError(f"{self.checkpoint} is of another version of fleetnas; resume with that one")
        return state
