"""A search that is not begun: who would take part, how many measurements, how long, and what bounds leave."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np

from fleetnas.coordinator.app.compose import (
    Notes,
    checked_accuracy,
    identity_of,
    open_network,
    planning_executor,
    winner_builder,
)
from fleetnas.coordinator.app.images import ImageProgress
from fleetnas.coordinator.app.local_device import LOCAL_FLEET, LocalDevice
from fleetnas.coordinator.app.request import FleetAccess, SearchRequest
from fleetnas.coordinator.app.run_choice import ChosenRun, choose_run
from fleetnas.coordinator.app.search_history import SearchHistory
from fleetnas.coordinator.app.target_checks import check_targets, checked_on
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.equal_boards import classes_of
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.workload import (
    Counts,
    Interval,
    SearchState,
    Seconds,
    counts_of_search,
    longest,
    time_of_device,
    widening,
)
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.coordinator.tuning.subnet_tuner import REPEATS, SubnetTuner
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting
from fleetnas.fleet_protocol.transports.base import take_events
from fleetnas.supernet_export.spaces.base import DesignSpace

_CONNECT_S, _TICK_S, _MOST_EVENTS = 10.0, 0.1, 500
#: Networks up to which all are counted; of more, this many random ones.
_COUNTED = 200_000
#: Share of the rate of bundles that arrives.
_TRANSFER_SHARE = 0.8


@dataclass(frozen=True)
class PlannedSetting:
    """One device setting that would take part. Times are seconds."""

    device: str
    model: str
    setting: str
    first: float
    """Measurements that count against the budget, expected."""
    verifications: float
    """Verifications of winners, expected."""
    seconds: Seconds
    known_measurements: int
    """Earlier measurements that tell the seconds; 0: the protocol alone."""


@dataclass(frozen=True)
class SpaceShare:
    """What the bounds leave of the design space."""

    share: float
    subnets: int
    """Subnets that were looked at."""
    counted: bool
    """Whether these are all; else they are random."""


@dataclass(frozen=True)
class DryRun:
    """The search that would begin now. Times are seconds."""

    settings: tuple[PlannedSetting, ...]
    left_out: tuple[tuple[str, str], ...]
    """Agents that would take no part, and why."""
    time: Interval
    transfer_s: float
    """Part of that for sending the bundle to devices that do not have it."""
    targets: str
    targets_each: int
    bounds: Bounds
    space: SpaceShare | None
    """None without bounds."""
    notes: tuple[str, ...] = ()

    @property
    def measurements(self) -> float:
        """Measurements in all, expected."""
        return sum(each.first + each.verifications for each in self.settings)


def dry_run(
    request: SearchRequest,
    store: MeasurementStore,
    *,
    image_progress: ImageProgress = lambda done, total: None,
    waiting: Callable[[], None] = lambda: None,
) -> DryRun:
    """Check a new search and wait for its devices as it would; measure nothing and store nothing.

    `waiting` is called once, before the wait.

    Raises the errors of `open_search`, and `UsageError` where the devices asked for do not appear.
    """
    local = isinstance(request.devices_at, LocalDevice)
    run = choose_run(request, LOCAL_FLEET if local else request.devices_at.name, store)  # type: ignore[union-attr]
    accuracy = checked_accuracy(run)
    if accuracy is not None and not run.settings.plan.architectures:
        check_targets(run.bundle.space, accuracy, run.settings.plan)
    notes = Notes()
    models = winner_builder(run, notes, image_progress)
    lines: list[str] = []
    with contextlib.ExitStack() as opened:
        network = open_network(request, run, [], notes)
        opened.callback(network.transport.close)
        executor = planning_executor()
        opened.callback(executor.shutdown)
        scratch = MeasurementStore.open("sqlite://")
        opened.callback(scratch.close)
        campaign = Campaign(
            identity_of(request, run, network.blobs),
            run.settings.plan,
            FleetConnection(network.link, network.blobs),
            scratch,
            planning=PlanningPool(models, executor, lambda: True),
            make_search=stand_in(run.bundle.space, run.settings.plan),
            clocks=Clocks(time.monotonic, time.time),
        )
        campaign.membership.before_first(request.check_devices)
        notes.forward(lines.append)
        waiting()
        campaign.start()
        network.transport.wait_connected(_CONNECT_S)
        try:
            while not campaign.membership.is_open:
                campaign.on_events(take_events(network.transport, _TICK_S, _MOST_EVENTS))
                campaign.look_for_devices()
        finally:
            campaign.stop()
        return _planned(request, run, campaign, store, tuple(lines))


def stand_in(space: DesignSpace, plan: CampaignPlan) -> Callable[[AgentInfo, RuntimeSetting], SettingTuner]:
    """Return a factory of tuners that are never asked, for a dry run searches nothing.

    It refuses the device settings that a search refuses.
    """
    smallest = space.decode(space.smallest())

    def make(info: AgentInfo, setting: RuntimeSetting) -> SettingTuner:
        if not plan.only_baselines and not plan.architectures:
            checked_on(plan.request_for(info.agent, info), info, setting)
        return SubnetTuner(space, smallest)

    return make


def asked_of(plan: CampaignPlan, info: AgentInfo, setting: RuntimeSetting) -> int:
    """Return the number of targets of a device setting that can be measured on it."""
    asked = plan.asked_of(info.agent, info)
    if plan.only_baselines or plan.architectures:
        return asked
    return asked - len(checked_on(plan.request_for(info.agent, info), info, setting))


def _planned(
    request: SearchRequest, run: ChosenRun, campaign: Campaign, store: MeasurementStore, notes: tuple[str, ...]
) -> DryRun:
    plan = run.settings.plan
    setting_runs = list(campaign.setting_runs.values())
    devices = {setting_run.device for setting_run in setting_runs}
    history = SearchHistory.of(store, plan, devices)
    equal = classes_of({each.device: each.info for each in setting_runs}.values()) if plan.pools else {}
    settings, work = [], dict[str, list[tuple[Counts, Seconds]]]()
    for setting_run in setting_runs:
        known = history.known(setting_run.device, setting_run.setting.label)
        counts = expected_counts(plan, history, asked_of(plan, setting_run.info, setting_run.setting))
        own = _own_part(counts, len(equal.get(setting_run.device, ())), plan)
        settings.append(
            PlannedSetting(
                setting_run.device,
                setting_run.info.profile.model,
                setting_run.setting.label,
                own.first,
                own.verification,
                known.seconds,
                known.measurements,
            )
        )
        work.setdefault(setting_run.device, []).append((own, known.seconds))
    transfer_s = _transfer_s(request, run, devices, history)
    beside_s = history.start_s + history.end_s + transfer_s
    found = longest(time_of_device(each, widening(len(work))) for each in work.values())
    time_s = Interval(found.expected + beside_s, found.least + 0.7 * beside_s, found.most + 1.5 * beside_s)
    if request.timeout_s is not None:
        notes += _timeout_notes(time_s, request.timeout_s)
        time_s = Interval(*(min(each, request.timeout_s) for each in (time_s.expected, time_s.least, time_s.most)))
    return DryRun(
        tuple(settings),
        _left_out(campaign, devices),
        time_s,
        transfer_s,
        plan.targets_text,
        plan.targets_asked,
        plan.bounds,
        _space_share(run.bundle.space, plan.bounds) if plan.bounds.given() else None,
        notes,
    )


def _timeout_notes(time: Interval, timeout_s: float) -> tuple[str, ...]:
    """Say that --timeout is expected to end the search, or may do so; nothing where it leaves enough time."""
    if time.most <= timeout_s:
        return ()
    verb = "ends" if time.expected > timeout_s else "may end"
    return (f"--timeout {verb} it before all is measured; --resume would go on",)


def expected_counts(plan: CampaignPlan, history: SearchHistory, targets: int | None = None) -> Counts:
    """Return the measurements that a new search makes on a device setting with this number of targets: the plan's."""
    begun = SearchState(open_targets=plan.targets_asked if targets is None else targets)
    found = counts_of_search(plan.budget, min(plan.initial_design, plan.budget), begun, history.habits)
    # Each baseline is measured as a given subnet is.
    return replace(found, verification=found.verification + REPEATS * len(plan.baselines))


def _own_part(counts: Counts, boards: int, plan: CampaignPlan) -> Counts:
    """Return what one board of a class of this size measures, the anchor included; 0: it is searched alone."""
    if boards < 2:
        return counts
    shared = counts.shared_over(boards, plan.verify_boards)
    return replace(shared, first=shared.first + 1.0)


def _transfer_s(request: SearchRequest, run: ChosenRun, devices: Collection[str], history: SearchHistory) -> float:
    """Return the time for sending the bundle to the devices that have not measured with it; none from a mirror."""
    at = request.devices_at
    if not isinstance(at, FleetAccess) or at.mirror is not None:
        return 0.0
    new = sum(run.bundle.sha256 not in history.bundles.get(device, ()) for device in devices)
    return new * run.bundle.path.stat().st_size / (_TRANSFER_SHARE * at.bundle_rate_bytes_per_s)


def _left_out(campaign: Campaign, devices: Collection[str]) -> tuple[tuple[str, str], ...]:
    unusable = dict(campaign.membership.unusable)
    refused = {device for device, _ in unusable}
    found = []
    for entry in sorted(campaign.registry.agents.values(), key=lambda each: each.name):
        if entry.name not in devices and entry.name not in refused:
            reason = "not chosen by --devices" if entry.present else entry.idle_reason()
            found.append((entry.name, reason))
    found += [(f"{device}/{label}", reason) for (device, label), reason in sorted(unusable.items())]
    return tuple(found)


def _space_share(space: DesignSpace, bounds: Bounds) -> SpaceShare:
    """Return the share of the subnets that keep the bounds."""
    counted = space.size <= _COUNTED
    genomes = space.enumerate(_COUNTED) if counted else space.sample(_COUNTED // 10, np.random.default_rng(0))
    return SpaceShare(float(bounds.met(space, genomes).mean()), len(genomes), counted)
