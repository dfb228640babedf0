"""Composes a search: checks all that can be checked before the first measurement, builds the parts, connects."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from fleetnas.coordinator.app.baselines import check_baseline_files, open_baselines
from fleetnas.coordinator.app.driver import CampaignTransport, RunningSearch
from fleetnas.coordinator.app.images import (
    ImageProgress,
    checked_images,
    checked_selection_images,
    selection_warnings,
)
from fleetnas.coordinator.app.local_device import LOCAL_FLEET, LocalDevice, LocalTransport
from fleetnas.coordinator.app.priority import yield_to_measurements
from fleetnas.coordinator.app.request import FleetAccess, SearchRequest
from fleetnas.coordinator.app.run_artifacts import RunArtifacts
from fleetnas.coordinator.app.run_choice import ChosenRun, choose_run
from fleetnas.coordinator.app.search_history import SearchHistory
from fleetnas.coordinator.app.tuners import NoSearchFactory, SubnetTunerFactory, TunerFactory, stored_priors
from fleetnas.coordinator.app.winner_card import check_card
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.resumption import take_up
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder, WinnerBuilder
from fleetnas.coordinator.fleet.agent_link import AgentLink, Sharing, coordinator_will
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.fleet.message_budget import MessageBudget
from fleetnas.coordinator.monitoring.metrics import Metrics
from fleetnas.coordinator.monitoring.publisher import Publisher
from fleetnas.coordinator.monitoring.view_group import ViewGroup
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import DeviceRecord
from fleetnas.coordinator.search.problem import PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.view import View
from fleetnas.fleet_protocol.cores import core_count
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.rate_limited_log import RateLimitedLog
from fleetnas.fleet_protocol.security.signing import OrderSigner
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess
from fleetnas.fleet_protocol.updates import RunSummary
from fleetnas.supernet_export.output_files import check_folder

_MOST_PLANNING_THREADS = 4
#: Line about given subnets of a bundle that has no images of its own.
NOT_CALIBRATED = (
    "not calibrated: without --calibration-images files keep the batch-norm statistics of the bundle, and int8 files "
    "the ranges that these imply; their latencies hold, their accuracies may not"
)


def open_search(
    request: SearchRequest,
    make_view: Callable[[], View],
    store: MeasurementStore,
    models: WinnerBuilder | None = None,
    image_progress: ImageProgress = lambda done, total: None,
) -> RunningSearch:
    """Open a search: check everything that can be checked before the first measurement, and connect.

    `models` builds winners' files in place of the bundle; then no images are read.

    Raises:
        UsageError: an option, a file or a stored run cannot be used as asked.
        BundleError: the supernet is no bundle.
        StoreError: the store cannot be used.
        InfeasibleTargetError: no subnet keeps the bounds.
    """
    fleet = LOCAL_FLEET if isinstance(request.devices_at, LocalDevice) else request.devices_at.name
    run = choose_run(request, fleet, store)
    accuracy = checked_accuracy(run)
    check_card(run.settings)
    check_baseline_files(run)
    notes = Notes()
    if models is None:
        models = winner_builder(run, notes, image_progress)
    for warning in selection_warnings(run.images):
        notes.add(warning)
    if run.resumed:
        models.adopt(store.evaluations.of_run(run.run_id))
    make_tuner = _tuners(run, accuracy, store, notes)
    with contextlib.ExitStack() as undo:
        network = open_network(request, run, store.devices(run.run_id) if run.resumed else [], notes)
        undo.callback(network.transport.close)
        metrics = Metrics(*request.metrics) if request.metrics is not None else None
        view = _view_group(make_view(), metrics, network.publisher)
        undo.callback(view.close)
        executor = planning_executor()
        undo.callback(executor.shutdown)
        clocks = Clocks(time.monotonic, time.time)
        campaign = Campaign(
            identity_of(request, run, network.blobs),
            run.settings.plan,
            FleetConnection(network.link, network.blobs),
            store,
            planning=PlanningPool(models, executor, lambda: make_tuner.at_once),
            make_search=make_tuner,
            clocks=clocks,
            emit=view.event,
        )
        campaign.membership.before_first(_at_the_beginning(request, run, campaign, store))
        notes.forward(campaign.note)
        if metrics is not None:
            metrics.attach(campaign, network.blobs, store)
        _begin(campaign, run, fleet, store)
        baselines = open_baselines(campaign, run, store, models, executor, clocks, accuracy, view.event)
        artifacts = RunArtifacts(store, run.run_id, run.out, models, campaign.note, time.monotonic, run.card)
        undo.pop_all()
    parts = (run.settings, campaign, store, network.transport, executor, view, artifacts)
    return RunningSearch(*parts, request.timeout_s, baselines, is_new=not run.resumed)


def other_search(summary: RunSummary) -> str:
    """Return the line about another search that is at work on the fleet."""
    return (
        f"run {summary.run_id} ({summary.supernet}) is at work on this fleet too: a device that takes part in both "
        "measures for each in turn, and both take longer; let one end first (`fleetnas watch --broker ...` shows it), "
        "or give each its own --devices"
    )


def _at_the_beginning(
    request: SearchRequest, run: ChosenRun, campaign: Campaign, store: MeasurementStore
) -> Callable[[Collection[str]], None]:
    """Return what happens once devices are there: they are checked, and earlier runs tell how long it takes."""

    def begin(names: Collection[str]) -> None:
        request.check_devices(names)
        history = SearchHistory.of(store, run.settings.plan, names)
        campaign.progress.expect(lambda device, label: history.known(device, label).seconds, history.habits)

    return begin


class Notes:
    """Lines for the campaign's log; kept until there is a campaign."""

    def __init__(self) -> None:
        self._kept: list[str] = []
        self._take: Callable[[str], object] = self._kept.append

    def add(self, line: str) -> None:
        """Log a line."""
        self._take(line)

    def forward(self, take: Callable[[str], object]) -> None:
        """Pass the lines kept so far, and all later ones, to `take`."""
        self._take = take
        for line in self._kept:
            take(line)
        self._kept.clear()


@dataclass(frozen=True)
class Network:
    """The coordinator's side of the network."""

    transport: CampaignTransport
    link: AgentLink = field(repr=False)
    blobs: BlobServer = field(repr=False)
    publisher: Publisher | None = field(repr=False)
    """None on a device alone: it cannot be watched from elsewhere."""


def open_network(request: SearchRequest, run: ChosenRun, stored: list[DeviceRecord], notes: Notes) -> Network:
    """Connect to a fleet, or make the agent of this device; `stored` are the device settings of a resumed run."""
    session = round(time.time() * 1000)
    client_id = f"coordinator-{secrets.token_hex(4)}"
    rejected = RateLimitedLog(notes.add, time.monotonic)
    # Lines of its own: those on what a flood says would crowd out the one on the flood.
    budget = MessageBudget(time.monotonic, RateLimitedLog(notes.add, time.monotonic))
    if isinstance(request.devices_at, LocalDevice):
        topics = Topics(LOCAL_FLEET)
        options = request.devices_at.agent_options(stored)
        transport: CampaignTransport = LocalTransport(options, client_id, coordinator_will(topics, session))
        link = AgentLink(transport, topics, session, rejected, budget=budget)
        return Network(transport, link, BlobServer(link.send_chunk), None)
    at = request.devices_at
    topics = Topics(at.name)
    # Tasks that no agent takes in time expire at a broker that speaks MQTT 5; agents need 3.1.1 alone.
    kind = MqttProcess if os.name == "posix" else MqttTransport
    transport = kind(at.broker, client_id, coordinator_will(topics, session), prefer_five=True)
    signer = OrderSigner(at.signing_key, at.name, round(time.time() * 1e6)) if at.signing_key is not None else None
    sharing = Sharing.of(run.run_id, at.signing_key) if at.share else None
    link = AgentLink(transport, topics, session, rejected, signer, sharing, budget)
    publisher = Publisher(transport, topics, run.run_id, time.monotonic, lambda other: notes.add(other_search(other)))
    link.listen_to_runs(publisher)
    blobs = BlobServer(link.send_chunk, rate_bytes_per_s=at.bundle_rate_bytes_per_s, at_once=at.bundles_at_once)
    return Network(transport, link, blobs, publisher)


def _view_group(view: View, metrics: Metrics | None, publisher: Publisher | None) -> ViewGroup:
    """Group the user's view with metrics and publisher."""
    views: list[View] = [view]
    if metrics is not None:
        views.append(metrics)
    if publisher is not None:
        views.append(publisher)
    return ViewGroup(views)


def planning_executor() -> ThreadPoolExecutor:
    """Threads for planning and calibration: half the cores, for an agent may measure on this machine."""
    return ThreadPoolExecutor(
        max_workers=max(1, min(_MOST_PLANNING_THREADS, core_count() // 2)),
        thread_name_prefix="search",
        initializer=yield_to_measurements,
    )


def identity_of(request: SearchRequest, run: ChosenRun, blobs: BlobServer) -> CampaignIdentity:
    """Name the run and its bundle, which `blobs` serves from now on."""
    mirror = request.devices_at.mirror if isinstance(request.devices_at, FleetAccess) else None
    bundle = run.bundle
    return CampaignIdentity(run.run_id, bundle.path.name, blobs.add_file(bundle.path, bundle.sha256), mirror)


def checked_accuracy(run: ChosenRun) -> PredictedAccuracy | None:
    """Make the accuracy model of a run; check its bounds and its folder of results as well.

    None where given subnets are measured and the bundle has no accuracy predictor.
    """
    space, predictor = run.bundle.space, run.bundle.accuracy_predictor()
    plan = run.settings.plan
    if predictor is None and not plan.architectures and not plan.only_baselines:
        if space.size == 1:
            raise UsageError(
                f"{run.bundle.path} holds one network of unknown accuracy; measure it with `fleetnas measure`, or give "
                "`fleetnas finetune` --val"
            )
        raise UsageError(
            f"{run.bundle.path} holds no accuracy predictor, so no subnet is known to be better than another; make one "
            "with `fleetnas accuracy evaluate` and `fleetnas accuracy fit --bundle`, or export it with one"
        )
    run.settings.plan.bounds.check(space)
    if run.settings.plan.architectures:
        space.encode(run.settings.plan.architectures)
    if run.out is not None:
        check_folder("--out", run.out)
    return PredictedAccuracy(space, predictor) if predictor is not None else None


def _tuners(
    run: ChosenRun, accuracy: PredictedAccuracy | None, store: MeasurementStore, notes: Notes
) -> TunerFactory | SubnetTunerFactory | NoSearchFactory:
    """Make the factory of the run's tuners: of searches, of measurements of given subnets, or of nothing."""
    space, plan = run.bundle.space, run.settings.plan
    if plan.only_baselines:
        return NoSearchFactory(space)
    if plan.architectures or accuracy is None:
        return SubnetTunerFactory(space, accuracy, plan)
    return TunerFactory(space, accuracy, plan, stored_priors(store, space, plan, run.created_unix_s, notes.add))


def winner_builder(run: ChosenRun, notes: Notes, progress: ImageProgress) -> BundleWinnerBuilder:
    """Make the builder of winners' files; every image is read once, before the first measurement."""
    if run.settings.plan.only_files:
        return BundleWinnerBuilder(run.bundle, None, None)
    opened = checked_images(run.bundle, run.images, progress)
    if run.settings.plan.architectures and opened[0] is None:
        notes.add(NOT_CALIBRATED)
    selection = checked_selection_images(run.bundle, run.images, opened, run.settings.plan.rerank, progress)
    return BundleWinnerBuilder(run.bundle, *opened, selection)


def _begin(campaign: Campaign, run: ChosenRun, fleet: str, store: MeasurementStore) -> None:
    """Store a new run, or bring the campaign to the state of the stored one; then connect."""
    if run.resumed:
        store.set_run_status(run.run_id, RunStatus.RUNNING)
        take_up(campaign, store, run.bundle.space)
    else:
        store.claim_run(run.run_id)
        store.create_run(run.record(fleet))
    campaign.start()
