"""`fleetnas measure`: given subnets, measured and verified on devices without a search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fleetnas.coordinator.cli import options
from fleetnas.coordinator.cli.architectures import ARCHITECTURE_HELP, parse_architecture
from fleetnas.coordinator.cli.configuration import store_location
from fleetnas.coordinator.cli.connection import ConnectionOptions
from fleetnas.coordinator.cli.option_groups import command, names
from fleetnas.coordinator.cli.search.fleet import FleetOptions
from fleetnas.coordinator.cli.search.measuring import MeasuringOptions
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.choices import Precision, RuntimeName
from fleetnas.fleet_protocol.errors import UsageError

if TYPE_CHECKING:
    from fleetnas.coordinator.app.local_device import LocalDevice
    from fleetnas.coordinator.app.request import NewRun, ResumedRun
    from fleetnas.coordinator.records.plan import CampaignPlan
    from fleetnas.coordinator.records.setting_filter import SettingFilter
    from fleetnas.coordinator.report.artifacts import WinnerCard
    from fleetnas.fleet_protocol.architecture import Architecture
    from fleetnas.supernet_export.spaces.base import DesignSpace

_DEFAULT_OUT = Path("fleetnas-out")


@dataclass(frozen=True)
class SettingOptions:
    """Runtime settings: of a fleet those that take part, of this device alone those that are made."""

    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            metavar="SETTING",
            help="How models run, such as onnxruntime,threads=4; may be repeated (default: all that agents offer).",
        ),
    ] = None
    runtime: Annotated[
        RuntimeName | None, typer.Option("--runtime", help="Only settings of this runtime; with --local: the runtime.")
    ] = None
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="Only settings of N threads; with --local: its threads."),
    ] = None
    precision: Annotated[
        Precision | None,
        typer.Option("--precision", help="Only settings of this precision; with --local: its precision."),
    ] = None
    local: Annotated[
        bool, typer.Option("--local", help="This device alone: agent and coordinator in one, no broker, no network.")
    ] = False
    state_dir: Annotated[
        Path | None, typer.Option("--state-dir", metavar="DIR", help="With --local: where the agent keeps its state.")
    ] = None

    def filter(self, card: WinnerCard | None) -> SettingFilter:
        """Parse the settings that take part: those of the card alone, where there is one."""
        from fleetnas.agent.runtimes.settings import parse_setting
        from fleetnas.coordinator.records.setting_filter import SettingFilter

        if card is not None:
            return SettingFilter(labels=(card.runtime,))
        if self.local:
            return SettingFilter()
        labels = tuple(parse_setting(text).label for text in self.setting or ())
        return SettingFilter(labels=labels, runtime=self.runtime, threads=self.threads, precision=self.precision)

    def device(self, card: WinnerCard | None) -> LocalDevice:
        """Parse this device's settings; `UsageError` where one cannot be used, or the card is of another device."""
        from fleetnas.agent.runtimes.settings import installed_runtime
        from fleetnas.coordinator.app.local_device import LocalDevice

        if card is not None:
            made = LocalDevice((card.setting,), self.state_dir)
            name = made.agent_options(()).name
            if name != card.device:
                raise UsageError(
                    f"the card is of device {card.device}, and this one is {name}; measure on {card.device}, with "
                    "--broker or --local there"
                )
            return made
        parts = [f"{key}={value}" for key, value in (("threads", self.threads), ("precision", self.precision)) if value]
        if not parts and self.runtime is None:
            return LocalDevice.parse(self.setting or (), None, None, self.state_dir)
        if self.setting:
            raise UsageError("--setting describes a whole setting; leave out --runtime, --threads and --precision")
        text = ",".join([self.runtime or installed_runtime(), *parts])
        return LocalDevice.parse((text,), None, None, self.state_dir)


@dataclass(frozen=True)
class OutputOptions:
    """Target, images, card and files."""

    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MS", help="Compare with this latency, such as 20ms (default: the card's)."),
    ] = None
    calibration_images: options.CalibrationImages = None
    evaluation_images: Annotated[
        Path | None,
        typer.Option("--evaluation-images", metavar="DIR", help="The same, to evaluate the measured files on."),
    ] = None
    some_classes: options.SomeClasses = False
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            metavar="FILE",
            help="Winner's card (.json): measure on its device setting; if its target is met, the card and the model "
            "file beside it are replaced.",
        ),
    ] = None
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where results and model files go (default: fleetnas-out; resumed: where they went).",
        ),
    ] = None
    name: options.RunName = None
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="[RUN]", help="Go on with a stored run (default: the latest interrupted)."),
    ] = None
    store: options.Store = None
    profile_winners: options.ProfileWinners = False
    tracking: options.Tracking = None
    as_json: options.Json = False

    def request(self, card: WinnerCard | None) -> TargetRequest:
        """Parse the target, the card's without one; `UsageError` unless it is one in milliseconds."""
        if self.target is None:
            if card is not None and card.target:
                raise UsageError(
                    f"the card is for {card.label}, and `fleetnas measure` compares medians; give --target MS"
                )
            known = card is not None and card.target_ms is not None
            return TargetRequest(fixed_ms=(card.target_ms,)) if known else TargetRequest()  # type: ignore[union-attr, arg-type]
        found = TargetRequest.parse(self.target)
        if found.automatic or found.others or found.count > 1:
            raise UsageError(f"--target {self.target} is not one latency; give milliseconds such as 20ms")
        return found


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("measure")(command(measure))


def measure(
    context: typer.Context,
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="A .supernet file; a resumed run knows its own.")
    ] = None,
    architecture: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARCHITECTURE",
            help=f"{ARCHITECTURE_HELP} May be left out for a bundle of one network, or with --card.",
        ),
    ] = None,
    *,
    connection: ConnectionOptions,
    settings: SettingOptions,
    output: OutputOptions,
    fleet: FleetOptions,
    measuring: MeasuringOptions,
) -> None:
    """Measure and verify given subnets on devices.

    Nothing is searched. It leaves the same results, model files and cards as a search. Exit code 1: a target was
    missed, or a subnet could not be measured.
    """
    from fleetnas.coordinator.app.request import LATEST, ImageFolders, NewRun, ResumedRun, SearchRequest

    _refuse_useless(context, settings, output, measuring)
    card = None
    if output.card is not None:
        from fleetnas.coordinator.app.winner_card import read_card

        card = read_card(output.card)
    agents = fleet.agents() or ((card.device,) if card is not None and not settings.local else ())
    run: NewRun | ResumedRun
    store, resumed = store_location(output.store), None
    if output.resume is not None:
        if architecture:
            raise UsageError(f"a resumed run keeps its subnets; leave out {', '.join(architecture)[:200]}")
        from fleetnas.coordinator.cli.search.resuming import claim_resumed

        which, local = output.resume or LATEST, settings.device(card) if settings.local else None
        resumed = claim_resumed(context, store, which, kind="measure", connection=connection, fleet=fleet, local=local)
        run, devices_at = ResumedRun(resumed.run_id, bundle, agents, kind="measure"), resumed.devices_at
    elif bundle is None:
        raise UsageError("give the BUNDLE of the subnets to measure; to go on with a stored run give --resume")
    else:
        plan = _plan(bundle, architecture or [], card, output, agents, settings, measuring)
        run = NewRun(bundle, plan, output.card, output.name)
        devices_at = settings.device(card) if settings.local else fleet.access(connection)
    request = SearchRequest(
        store,
        devices_at,
        run,
        out=_DEFAULT_OUT if output.out is None and output.resume is None else output.out,
        images=ImageFolders(output.calibration_images, output.evaluation_images, some_classes=output.some_classes),
        tracking_uri=options.tracking_uri(output.tracking),
    )
    from fleetnas.coordinator.cli.search.running import run_search

    raise typer.Exit(run_search(request, as_json=output.as_json, store=resumed.store if resumed is not None else None))


def _plan(
    bundle: Path,
    texts: list[str],
    card: WinnerCard | None,
    output: OutputOptions,
    agents: tuple[str, ...],
    settings: SettingOptions,
    measuring: MeasuringOptions,
) -> CampaignPlan:
    from fleetnas.coordinator.records.plan import CampaignPlan
    from fleetnas.coordinator.tuning.subnet_tuner import REPEATS
    from fleetnas.supernet_export.bundle import SupernetBundle

    architectures = _architectures(SupernetBundle.open(bundle).space, bundle, texts, card)
    return CampaignPlan(
        targets=output.request(card),
        profile_winners=output.profile_winners,
        architectures=architectures,
        budget=REPEATS * len(architectures),
        prior="default",
        devices=agents,
        settings=settings.filter(card),
        **measuring.fields(),
    )


def _architectures(
    space: DesignSpace, bundle: Path, texts: list[str], card: WinnerCard | None
) -> tuple[Architecture, ...]:
    """Parse the architectures to measure, each once; without one, the only network, or that of the card."""
    if texts:
        return tuple(dict.fromkeys(parse_architecture(space, text) for text in texts))
    if (space.smallest() == space.largest()).all():
        return tuple(space.decode(space.smallest()))
    if card is not None and card.architecture is not None:
        return tuple(space.decode(space.encode([card.architecture])))
    raise UsageError(f"{bundle} holds many networks; name those to measure, such as `smallest`, or a winner's card")


def _refuse_useless(
    context: typer.Context, settings: SettingOptions, output: OutputOptions, measuring: MeasuringOptions
) -> None:
    """`UsageError` where an option was given that changes nothing."""
    if settings.local:
        fleets = (*names(ConnectionOptions), *names(FleetOptions), "wait_for")
        options.refuse(context, fleets, "--local has neither broker nor fleet")
    else:
        options.refuse(context, ("state_dir",), "an agent of a fleet has its own state folder (--local alone)")
    chosen = ("setting", "runtime", "threads", "precision")
    if output.card is not None:
        options.refuse(context, chosen, "--card measures on the card's own setting")
    if output.resume is not None:
        kept = (*chosen, "name", "target", "card", "profile_winners", *names(MeasuringOptions))
        options.refuse(context, kept, "a resumed run keeps what it began with")
    elif measuring.conditions != "cool":
        options.refuse(context, ("cool_for",), "only --conditions cool waits for a device to cool")
