"""Keep an unfinished fine-tuning on disk, so that it can be resumed after any end of its process."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.supernet_export.lock_file import only_one_process
from fleetnas.supernet_export.output_files import write_atomically

#: Seconds of training that a killed process loses at most.
_EVERY_S = 60.0


class FineTuningState:
    """The file `<bundle>.partial` beside the bundle that a training will write."""

    def __init__(self, output: Path, settings: Mapping[str, Any], clock: Callable[[], float] = time.monotonic) -> None:
        """`settings` describe the training, JSON-serialisable; only one with equal settings may be continued."""
        self.path = _partial(output)
        self._settings, self._clock = dict(settings), clock
        self._saved = clock()

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the bundle's name for one fine-tuning; `UsageError` where another process has it."""
        path = self.path.with_name(f".{self.path.name}-claimed")
        path.parent.mkdir(parents=True, exist_ok=True)
        with only_one_process(path) as claimed:
            if not claimed:
                raise UsageError(
                    f"another process fine-tunes {self.path.stem}; wait for its end, or give another name to --output"
                )
            yield

    def load(self) -> dict[str, Any]:
        """Return the saved state.

        Raises:
            UsageError: the file holds no state, or that of another training; the message names what differs.
        """
        import torch

        try:
            found = torch.load(io.BytesIO(self.path.read_bytes()), weights_only=True, map_location="cpu")
            settings, state = json.loads(found["settings"]), dict(found["state"])
        except Exception as error:  # noqa: BLE001 - torch's reader raises anything for a broken file
            raise UsageError(
                f"{self.path} holds no interrupted fine-tuning ({' '.join(str(error).split())[:100]}); delete it, and "
                "start again without --resume"
            ) from None
        wanted = json.loads(json.dumps(self._settings))
        differing = sorted(key for key in {*settings, *wanted} if settings.get(key) != wanted.get(key))
        if differing:
            named = "; ".join(f"{key}: {_short(settings.get(key))}, now {_short(wanted.get(key))}" for key in differing)
            raise UsageError(
                f"{self.path} is of another fine-tuning ({named}); resume it with the options that it was started "
                "with, or delete it"
            )
        return state

    def wants_saving(self) -> bool:
        """Whether the last state is old enough for another one."""
        return self._clock() - self._saved >= _EVERY_S

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the saved state at once; `OSError` if that fails."""
        import torch

        content = io.BytesIO()
        torch.save({"settings": json.dumps(self._settings), "state": dict(state)}, content)
        write_atomically(self.path, content.getvalue())
        self._saved = self._clock()

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.path.unlink(missing_ok=True)


def check_unfinished(output: Path, *, resume: bool) -> None:
    """Raise `UsageError` where `output` exists, or an interrupted training of it does that is not to be resumed."""
    if output.exists():
        raise UsageError(f"{output} exists already; give another name, or delete it first")
    partial = _partial(output)
    if partial.exists() and not resume:
        raise UsageError(
            f"{partial} holds an interrupted training; go on with it with --resume, or delete it to start again"
        )


def is_unfinished(output: Path) -> bool:
    """Whether there is an interrupted training of `output` to resume."""
    return _partial(output).exists()


def _partial(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
