"""The options of a search on this device alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fleetnas.coordinator.app.local_device import LocalDevice


@dataclass(frozen=True)
class LocalOptions:
    """This device's settings, and the folder of its agent."""

    local: Annotated[
        bool, typer.Option("--local", help="This device alone: agent and coordinator in one, no broker, no network.")
    ] = False
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            metavar="SETTING",
            help="With --local: how models run, such as onnxruntime,threads=4; may be repeated.",
        ),
    ] = None
    runtime: Annotated[
        str | None,
        typer.Option(
            "--runtime",
            metavar="NAME",
            help="With --local: the runtime, in place of --setting (default: what is installed).",
        ),
    ] = None
    threads: Annotated[int | None, typer.Option("--threads", metavar="N", min=1, help="With --local: its threads.")] = (
        None
    )
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", help="With --local: where the agent keeps its state.")
    ] = None

    def device(self) -> LocalDevice:
        """Parse this device's settings; `UsageError` where one cannot be used."""
        from fleetnas.coordinator.app.local_device import LocalDevice

        return LocalDevice.parse(self.setting or (), self.runtime, self.threads, self.state_dir)
