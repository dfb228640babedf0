"""From what a user asks for to a campaign at work, and from its end to the folder that the user takes home."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from fleetnas.coordinator.app.garbage import rarer_garbage_collection
from fleetnas.coordinator.app.local_device import LOCAL_FLEET, LocalDevice, LocalTransport
from fleetnas.coordinator.app.priority import yield_to_measurements
from fleetnas.coordinator.app.results_writer import ResultsWriter, reason_of
from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.resumption import take_up
from fleetnas.coordinator.campaign.setting_run import one_line
from fleetnas.coordinator.campaign.standing import outcome_of, snapshot_of
from fleetnas.coordinator.campaign.winner_builder import BundleWinnerBuilder, CalibratedModel, WinnerBuilder
from fleetnas.coordinator.fleet.agent_link import AgentLink, Sharing, coordinator_will
from fleetnas.coordinator.fleet.blob_server import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S, BlobServer
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.fleet.message_budget import MessageBudget
from fleetnas.coordinator.monitoring.metrics import Metrics
from fleetnas.coordinator.monitoring.publisher import Publisher
from fleetnas.coordinator.monitoring.view_group import ViewGroup
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings, settings_of
from fleetnas.coordinator.records.stored import DeviceRecord, RunRecord
from fleetnas.coordinator.report.artifacts import REPORT_FILE, RESULTS_FILE, ArtifactFolder
from fleetnas.coordinator.report.html import write_report
from fleetnas.coordinator.search.blas import single_threaded_blas
from fleetnas.coordinator.search.problem import CachedAccuracy, PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.store.stored_devices import StoredPriors
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.shared_archive import SharedArchive
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.coordinator.view.view import View
from fleetnas.fleet_protocol.errors import (
    FleetnasError,
    HashMismatchError,
    ResultsError,
    StoreUnavailableError,
    UsageError,
)
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting
from fleetnas.fleet_protocol.rate_limited_log import RateLimitedLog
from fleetnas.fleet_protocol.security.signing import OrderSigner
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.base import BrokerAddress, take_events
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.fleet_protocol.transports.mqtt_process import MqttProcess
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.evaluation.images import ImageSource, open_images
from fleetnas.supernet_export.output_files import check_folder

_CONNECT_S = 10.0
#: Between two pictures for the view, and between two ticks where nothing arrives.
_VIEW_EVERY_S, _TICK_S = 0.25, 0.1
_VIEW_SHARE = 50
_MOST_EVENTS_PER_TICK = 500
_LISTED_PACKAGES = ("fleetnas", "numpy", "onnx", "onnxruntime")

_log = logging.getLogger("fleetnas.coordinator")

Ending = Literal["complete", "partial", "failed", "interrupted"]


@dataclass(frozen=True)
class SearchRequest:
    """One `fleetnas search`."""

    store: str
    broker: BrokerAddress | None = None
    """None: no fleet, `local` instead."""
    local: LocalDevice | None = None
    """This device alone, without a broker."""
    fleet: str = "default"
    signing_key: bytes | None = field(default=None, repr=False)
    """Ed25519: signs what agents are told, where their credentials ask for that."""
    supernet: Path | None = None
    """None where a stored run is resumed."""
    plan: CampaignPlan | None = None
    resume: str | None = None
    """A run's id, or `latest`: the latest that was interrupted."""
    devices: tuple[str, ...] = ()
    """Agents that a resumed run takes in beside its own."""
    credentials: Path | None = None
    """The file that `broker`, `fleet` and `signing_key` came from, to tell how to go on."""
    out: Path | None = None
    calibration_images: Path | None = None
    evaluation_images: Path | None = None
    metrics: tuple[str, int] | None = None
    """Address and port on which Prometheus finds metrics."""
    mirror: str | None = None
    """Address of a folder where agents may fetch the bundle beside the broker."""
    bundle_rate_bytes_per_s: float = DEFAULT_RATE_BYTES_PER_S
    """How fast bundles leave through the broker, for all agents together."""
    bundles_at_once: int = DEFAULT_AT_ONCE
    """Agents that are sent a bundle through the broker at the same time."""
    share: bool = False
    """Share what agents say of tasks with the fleet's other coordinators."""


@dataclass
class RunningSearch:
    """A campaign with everything that it needs, open."""

    run_id: str
    settings: RunSettings
    campaign: Campaign
    store: MeasurementStore
    models: WinnerBuilder
    transport: MqttProcess | MqttTransport | LocalTransport
    executor: ThreadPoolExecutor
    view: View = field(repr=False)
    results: ResultsWriter | None = None
    """None: nothing is taken home."""

    def run(self) -> Ending:
        """Drive the campaign to its end; Ctrl-C ends it in good order and leaves it to be resumed.

        `ResultsError` where the results could not be written; the run can then be resumed too.
        """
        try:
            self.transport.wait_connected(_CONNECT_S)
            # What is computed between two messages is small: more BLAS threads would wait for each other.
            with single_threaded_blas(), rarer_garbage_collection():
                self._drive()
        except KeyboardInterrupt:
            self.campaign.stop()
            self._mark_interrupted()
            self._write_artifacts()
            return "interrupted"
        except BaseException:
            self._mark_interrupted()
            raise
        finally:
            self.view.update(snapshot_of(self.campaign, time.time()))
        try:
            return self.campaign.finish(self._write_artifacts)
        except ResultsError:
            self._mark_interrupted()
            raise

    def _mark_interrupted(self) -> None:
        # A store that is away has nothing to add to why the run ends, and a run marked as running is resumed as well.
        with contextlib.suppress(StoreUnavailableError):
            self.store.set_run_status(self.run_id, "interrupted")

    def close(self) -> None:
        """Let go of the network, the view and the store."""
        if self.results is not None:
            self.results.close()
        self.view.close()
        self.transport.close()
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.store.close()

    def _drive(self) -> None:
        show_at_s = float("-inf")
        while not self.campaign.finished:
            wait_s = 0.0 if self.campaign.behind else _TICK_S
            self.campaign.on_events(take_events(self.transport, wait_s, _MOST_EVENTS_PER_TICK))
            self.campaign.on_tick()
            if self.results is not None and not self.campaign.finished:  # then the whole is written at once
                self.results.update(self.campaign.targets_stored)
            began_s = time.monotonic()
            if began_s >= show_at_s:
                self.view.update(snapshot_of(self.campaign, time.time()))
                took_s = time.monotonic() - began_s
                # The picture of a large fleet must not cost more than the fleet itself.
                show_at_s = began_s + max(_VIEW_EVERY_S, _VIEW_SHARE * took_s)

    def _write_artifacts(self) -> str | None:
        if self.settings.out is None:
            return None
        if self.results is not None:
            self.results.close()
        out = Path(self.settings.out)
        try:
            remarks = write_artifacts(self.store, self.run_id, out, self.models)
        except OSError as error:
            raise ResultsError(
                f"the results of run {self.run_id} could not be written ({reason_of(error)}); each file that is in "
                f"{out} is whole, and everything measured is in the store {self.store.url}: make room or choose "
                "another --out, then resume the run, which measures nothing again"
            ) from error
        for remark in remarks:
            self.campaign.note(remark)
        if remarks:
            self.view.update(snapshot_of(self.campaign, time.time()))
        return str(out / RESULTS_FILE)


def open_search(
    request: SearchRequest,
    make_view: Callable[[], View],
    store: MeasurementStore,
    models: WinnerBuilder | None = None,
    image_progress: Callable[[int, int], None] = lambda done, total: None,
) -> RunningSearch:
    """Check all that can be checked before anything is measured, and connect.

    `models` builds winners' files in place of the bundle. `image_progress` is given how many of the images are
    checked, and how many there are.

    `UsageError`, `BundleError` and `StoreError` say what cannot be used, `InfeasibleTargetError` which bounds no subnet
    keeps.
    """
    fleet = LOCAL_FLEET if request.local is not None else request.fleet
    resumed = claimed_run(store, request.resume, fleet) if request.resume is not None else None
    settings = run_settings(request, resumed, store)
    plan = settings.plan
    targets = plan.request
    bundle = SupernetBundle.open(settings.supernet_path)
    if resumed is not None and bundle.sha256 != resumed.bundle_sha256:
        raise HashMismatchError(
            f"run {resumed.run_id} was started with a bundle of SHA-256 {resumed.bundle_sha256}; "
            f"{settings.supernet_path} now has {bundle.sha256}: bring that file back, or start a new run"
        )
    accuracy = PredictedAccuracy(bundle.space, _accuracy_predictor(bundle))
    plan.bounds.check(bundle.space)
    if settings.out is not None:
        check_folder("--out", Path(settings.out))
    calibration, evaluation = image_sources(
        bundle, _path(settings.calibration_images), _path(settings.evaluation_images), image_progress
    )
    models = models or BundleWinnerBuilder(bundle, calibration, evaluation)
    thorough = BundleTargetSolver(bundle.space, accuracy, plan.strategy, bounds=plan.bounds)
    search = SharedArchive(thorough, bundle.space, accuracy, plan.bounds)
    search.expect(max(plan.wait_for, len(plan.devices)))
    cached = CachedAccuracy(accuracy)
    created_unix_s = resumed.created_unix_s if resumed is not None else time.time()
    campaign_log: list[Callable[[str], None]] = []
    early: list[str] = []

    def note(line: str) -> None:
        (campaign_log[0] if campaign_log else early.append)(line)

    priors = None
    if plan.prior == "learned":
        with single_threaded_blas():  # of matrices this small, more threads take longer
            priors = StoredPriors(store, bundle.space, created_unix_s, without=plan.prior_without, note=note)
    designs: dict[int, InitialDesign] = {}

    def make_search(info: AgentInfo, setting: RuntimeSetting) -> DeviceTuner:
        search.join()
        prior = priors.prior(info.profile, setting, info.agent) if priors is not None else None
        if id(prior) not in designs:
            count = min(plan.spread, plan.budget)
            designs[id(prior)] = InitialDesign(
                bundle.space, count=count, seed=plan.seed, prior=prior, bounds=plan.bounds
            )
        return DeviceTuner(designs[id(prior)], cached, targets, search, budget=plan.budget)

    run_id = resumed.run_id if resumed is not None else new_run_id()
    topics = Topics(fleet)
    session = round(time.time() * 1000)
    transport = _transport(request, store.devices(run_id) if resumed is not None else [], topics, session)
    key = request.signing_key
    signer = OrderSigner(key, request.fleet, round(time.time() * 1e6)) if key is not None else None
    refusals = RateLimitedLog(note, time.monotonic)
    sharing = Sharing.of(run_id, key) if request.share else None
    link = AgentLink(transport, topics, session, refusals, signer, sharing, MessageBudget(time.monotonic, refusals))
    blobs = BlobServer(
        link.send_chunk, rate_bytes_per_s=request.bundle_rate_bytes_per_s, at_once=request.bundles_at_once
    )
    reference = blobs.add_file(bundle.path, bundle.sha256)
    metrics = Metrics(*request.metrics) if request.metrics is not None else None
    views: list[View] = [make_view(), *([metrics] if metrics is not None else [])]
    if request.local is None:
        publisher = Publisher(transport, topics, run_id, time.monotonic)
        link.listen_to_runs(publisher)
        views.append(publisher)
    view = ViewGroup(views)
    executor = ThreadPoolExecutor(
        max_workers=max(1, min(4, (os.cpu_count() or 2) // 2)),
        thread_name_prefix="search",
        initializer=yield_to_measurements,
    )
    campaign = Campaign(
        CampaignIdentity(run_id, bundle.path.name, reference, request.mirror),
        plan,
        FleetConnection(link, blobs),
        store,
        planning=PlanningPool(models, executor, lambda: search.at_once),
        make_search=make_search,
        clocks=Clocks(time.monotonic, time.time),
        emit=view.event,
    )
    campaign_log.append(campaign.note)
    for line in early:
        campaign.note(line)
    if metrics is not None:
        metrics.attach(campaign, blobs, store)
    if resumed is None:
        store.claim_run(run_id)
        store.create_run(
            RunRecord(
                run_id, topics.fleet, bundle.path.name, bundle.sha256, settings.model_dump(mode="json"), created_unix_s
            )
        )
    else:
        store.set_run_status(run_id, "running")
        take_up(campaign, store, bundle.space)
    campaign.start()
    results = None
    if settings.out is not None and not store.in_memory:
        out = Path(settings.out)
        results = ResultsWriter(
            lambda: write_artifacts(store, run_id, out, models, report=False), campaign.note, time.monotonic
        )
    return RunningSearch(run_id, settings, campaign, store, models, transport, executor, view, results)


def _transport(
    request: SearchRequest, stored: list[DeviceRecord], topics: Topics, session: int
) -> MqttProcess | MqttTransport | LocalTransport:
    client_id, will = f"coordinator-{secrets.token_hex(4)}", coordinator_will(topics, session)
    if request.local is not None:
        return LocalTransport(request.local.agent_options(stored), client_id, will)
    if request.broker is None:
        raise UsageError("where the devices are must be said: a broker, or this device alone (--local)")
    # Tasks that nobody takes in time expire at a broker that speaks MQTT 5; agents need 3.1.1 alone.
    kind = MqttProcess if os.name == "posix" else MqttTransport
    return kind(request.broker, client_id, will, prefer_five=True)


def write_artifacts(
    store: MeasurementStore, run_id: str, directory: Path, models: WinnerBuilder, *, report: bool = True
) -> list[str]:
    """Write a stored run's results, measurements and winners' files, built again from their stored statistics.

    `report` is for a run that has ended: its plots take long. Returns a line on each part that could not be made and is
    left out: a winner's file, the report. `OSError` where the folder cannot be written.
    """
    outcome = outcome_of(store, run_id)
    artifacts = ArtifactFolder(directory)
    remarks = []
    verified = {
        (task.device, task.setting_label, task.architecture.fingerprint): task
        for task in store.tasks(run_id)
        if task.model_sha256 is not None
    }
    for device in outcome.devices:
        for target in device.targets:
            if not target.met or target.architecture is None:
                continue
            try:
                task = verified[device.device, device.setting.label, target.architecture.fingerprint]
                assert task.model_sha256 is not None
                model = CalibratedModel(target.architecture, device.setting, task.model_sha256, task.calibration)
                if not artifacts.has_winner(device, target):
                    artifacts.add_winner(device, target, models.file(model))
            except OSError:  # of the disk, and so of every device
                raise
            except Exception as error:
                what = f"{device.label} has no model file for {target.target_ms:g} ms"
                if not isinstance(error, FleetnasError):
                    _log.error("%s", what, exc_info=error)
                remarks.append(f"{what}: {one_line(error)}")
    artifacts.write(outcome)
    if report:
        try:
            write_report(directory)
        except OSError:
            raise
        except Exception as error:  # a page on what is written already
            _log.error("the report is not written", exc_info=error)
            remarks.append(f"the report could not be written: {one_line(error)}; the results are")
    else:
        # An earlier run's would stand beside results that are not its own.
        (directory / REPORT_FILE).unlink(missing_ok=True)
    return remarks


def new_run_id() -> str:
    """Sorts by time, and two coordinators do not meet."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def stored_models(settings: RunSettings) -> BundleWinnerBuilder:
    """Winners' files of a stored run, for as long as its bundle is where it was."""
    return BundleWinnerBuilder(SupernetBundle.open(settings.supernet_path), None, None)


def claimed_run(store: MeasurementStore, which: str, fleet: str) -> RunRecord:
    """A stored run, or the fleet's latest interrupted one that nobody works on, to be ours alone."""
    if which != "latest":
        run = store.run(which)
        if not store.claim_run(run.run_id):
            raise UsageError(f"another coordinator works on run {run.run_id}; end that one first, or start a new run")
        return run
    runs = [run for run in store.runs() if run.fleet == fleet]
    for run in reversed(runs):
        # One that was killed is marked as running still; one that no device ever joined has nothing to go on with.
        if run.status in ("running", "interrupted") and store.devices(run.run_id) and store.claim_run(run.run_id):
            return run
    ended = [run for run in runs if run.status not in ("running", "interrupted")]
    latest = f"; the latest that ended is {ended[-1].run_id} ({ended[-1].status}), see --resume RUN" if ended else ""
    raise UsageError(
        f"the store {store.url} holds no interrupted run of fleet {fleet!r} that nobody works on{latest}; "
        "`fleetnas runs` lists them all"
    )


def run_settings(request: SearchRequest, resumed: RunRecord | None, store: MeasurementStore) -> RunSettings:
    """The settings of a new run, or of a stored one with what the request changes of them."""
    if resumed is not None:
        settings = settings_of(resumed)
        changes: dict[str, object] = {}
        if request.supernet is not None:
            changes["supernet_path"] = str(request.supernet.absolute())
        if request.out is not None:
            changes["out"] = _text(request.out)
        if request.calibration_images is not None:
            changes["calibration_images"] = _text(request.calibration_images)
        if request.evaluation_images is not None:
            changes["evaluation_images"] = _text(request.evaluation_images)
        if request.devices:
            # Beside those that were named before; those that take part already do so anyway.
            named = dict.fromkeys((*settings.plan.devices, *request.devices))
            changes["plan"] = settings.plan.model_copy(update={"devices": tuple(named)})
        return settings.model_copy(update=changes)
    if request.supernet is None or request.plan is None:
        raise UsageError("a new search needs --supernet and --targets; to go on with a stored run give --resume")
    unknown = sorted(set(request.plan.prior_without) - store.known_devices())
    if unknown:
        raise UsageError(
            f"--prior-without {', '.join(unknown)}: the store {store.url} holds no such device; check the name, or "
            "leave it out"
        )
    # Kept with the run, so that it is resumed with the priors that it began with, whoever is distrusted then.
    without = tuple(sorted({*request.plan.prior_without, *store.distrusted()}))
    bundle = SupernetBundle.open(request.supernet)
    manifest = bundle.manifest
    return RunSettings(
        plan=request.plan.model_copy(update={"prior_without": without}),
        supernet_path=str(request.supernet.absolute()),
        design_space=manifest.space,
        space_options=dict(bundle.space.options),
        source=manifest.provenance.source,
        checkpoint_sha256=manifest.provenance.sha256,
        calibration_images=_text(request.calibration_images),
        evaluation_images=_text(request.evaluation_images),
        out=_text(request.out),
        versions=_versions(),
    )


def _accuracy_predictor(bundle: SupernetBundle) -> AccuracyPredictor:
    predictor = bundle.accuracy_predictor()
    if predictor is None:
        raise UsageError(
            f"{bundle.path} holds no accuracy predictor, so no subnet is known to be better than another; export it "
            "with one (`fleetnas export --help`)"
        )
    return predictor


def image_sources(
    bundle: SupernetBundle,
    calibration: Path | None,
    evaluation: Path | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[ImageSource | None, ImageSource | None]:
    """Images to calibrate and to evaluate on: folders, or for the built-in digits its own parts.

    Every image is read once; `UsageError` names those that cannot be. `progress` is given the images read and the
    images in all.
    """
    manifest = bundle.manifest

    def source(directory: Path | None, part: Literal["calibration", "test"]) -> ImageSource | None:
        if directory is None and manifest.dataset != "digits":
            return None
        found = open_images(manifest, directory, part)
        found.check(progress)
        return found

    found = source(calibration, "calibration")
    return found, found if evaluation is not None and evaluation == calibration else source(evaluation, "test")


def _text(path: Path | None) -> str | None:
    return str(path.absolute()) if path is not None else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


def _versions() -> dict[str, str]:
    installed = {package: list(metadata.distributions(name=package)) for package in _LISTED_PACKAGES}
    return {package: found[0].version for package, found in installed.items() if found}
