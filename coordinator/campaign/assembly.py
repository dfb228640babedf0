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

from coordinator.blob_server import DEFAULT_AT_ONCE, DEFAULT_RATE_BYTES_PER_S, BlobServer
from coordinator.campaign.campaign import Campaign, CampaignIdentity
from coordinator.campaign.device_search import DeviceSearch
from coordinator.campaign.fleet_search import FleetSearch
from coordinator.campaign.garbage import rarer_garbage_collection
from coordinator.campaign.opening import Opening
from coordinator.campaign.plan import CampaignPlan, RunSettings
from coordinator.campaign.priority import yield_to_measurements
from coordinator.campaign.resumption import take_up
from coordinator.campaign.standing import outcome_of, snapshot_of
from coordinator.campaign.track import one_line
from coordinator.campaign.winner_models import BundleModels, CalibratedModel, WinnerModels
from coordinator.campaign.winner_search import BundleSearch
from coordinator.campaign.wire import FleetWire, Sharing, coordinator_will
from coordinator.local_device import LOCAL_FLEET, LocalDevice, LocalTransport
from coordinator.predictors.stored_devices import StoredPriors
from coordinator.report.html import write_report
from coordinator.report.take_home import RESULTS_FILE, TakeHome
from coordinator.search.blas import single_threaded_blas
from coordinator.search.problem import PredictedAccuracy, RememberedAccuracy
from coordinator.store.records import DeviceRecord, RunRecord
from coordinator.store.store import MeasurementStore
from coordinator.view.view import View
from coordinator.watching.audience import Audience
from coordinator.watching.broadcast import Broadcast
from coordinator.watching.metrics import Metrics
from fleet_protocol.errors import HashMismatchError, StoreUnavailableError, UsageError
from fleet_protocol.messages import AgentInfo, RuntimeSetting
from fleet_protocol.mqtt import MqttTransport
from fleet_protocol.network_process import NetworkProcess
from fleet_protocol.refusals import Refusals
from fleet_protocol.signing import OrderSigner
from fleet_protocol.topics import Topics
from fleet_protocol.transport import BrokerAddress, take_events
from supernet_export.accuracy import AccuracyPredictor
from supernet_export.bundle import SupernetBundle
from supernet_export.images import DigitsImages, ImageFolder, ImageSource

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
    """A run's id, or `latest`."""
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
    models: WinnerModels
    transport: NetworkProcess | MqttTransport | LocalTransport
    executor: ThreadPoolExecutor
    view: View = field(repr=False)

    def run(self) -> Ending:
        """Drive the campaign to its end; Ctrl-C ends it in good order and leaves it to be resumed."""
        try:
            self.transport.wait_connected(_CONNECT_S)
            # What is computed between two messages is small: more BLAS threads would wait for each other.
            with single_threaded_blas(), rarer_garbage_collection():
                self._drive()
        except KeyboardInterrupt:
            self.campaign.stop()
            self._mark_interrupted()
            self._write_take_home()
            return "interrupted"
        except BaseException:
            self._mark_interrupted()
            raise
        finally:
            self.view.update(snapshot_of(self.campaign, time.time()))
        return self.campaign.finish(self._write_take_home)

    def _mark_interrupted(self) -> None:
        # A store that is away has nothing to add to why the run ends, and a run marked as running is resumed as well.
        with contextlib.suppress(StoreUnavailableError):
            self.store.set_run_status(self.run_id, "interrupted")

    def close(self) -> None:
        """Let go of the network, the view and the store."""
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
            began_s = time.monotonic()
            if began_s >= show_at_s:
                self.view.update(snapshot_of(self.campaign, time.time()))
                took_s = time.monotonic() - began_s
                # The picture of a large fleet must not cost more than the fleet itself.
                show_at_s = began_s + max(_VIEW_EVERY_S, _VIEW_SHARE * took_s)

    def _write_take_home(self) -> str | None:
        if self.settings.out is None:
            return None
        for line in write_take_home(self.store, self.run_id, Path(self.settings.out), self.models):
            self.campaign.note(line)
        return str(Path(self.settings.out) / RESULTS_FILE)


def open_search(
    request: SearchRequest, make_view: Callable[[], View], store: MeasurementStore, models: WinnerModels | None = None
) -> RunningSearch:
    """Check all that can be checked before anything is measured, and connect.

    `models` builds winners' files in place of the bundle.

    `UsageError`, `BundleError` and `StoreError` say what cannot be used, `InfeasibleTargetError` which bounds no subnet
    keeps.
    """
    fleet = LOCAL_FLEET if request.local is not None else request.fleet
    resumed = _claimed_run(store, request.resume, fleet) if request.resume is not None else None
    settings = _settings(request, resumed)
    plan = settings.plan
    targets = plan.request
    bundle = SupernetBundle.open(settings.supernet_path)
    if resumed is not None and bundle.sha256 != resumed.bundle_sha256:
        raise HashMismatchError(
            f"run {resumed.run_id} was started with a bundle of SHA-256 {resumed.bundle_sha256}; "
            f"{settings.supernet_path} now has {bundle.sha256}: bring that file back, or start a new run"
        )
    accuracy = PredictedAccuracy(bundle.space, _accuracy_predictor(bundle))
    calibration, evaluation = image_sources(
        bundle, _path(settings.calibration_images), _path(settings.evaluation_images)
    )
    models = models or BundleModels(bundle, calibration, evaluation)
    plan.bounds.check(bundle.space)
    thorough = BundleSearch(bundle.space, accuracy, plan.strategy, bounds=plan.bounds)
    search = FleetSearch(thorough, bundle.space, accuracy, plan.bounds)
    search.expect(max(plan.wait_for, len(plan.devices)))
    remembered = RememberedAccuracy(accuracy)
    created_unix_s = resumed.created_unix_s if resumed is not None else time.time()
    priors = StoredPriors(store, bundle.space, created_unix_s) if plan.prior == "learned" else None
    openings: dict[int, Opening] = {}

    def make_search(info: AgentInfo, setting: RuntimeSetting) -> DeviceSearch:
        search.join()
        prior = priors.prior(info.profile, setting) if priors is not None else None
        if id(prior) not in openings:
            count = min(plan.spread, plan.budget)
            openings[id(prior)] = Opening(bundle.space, count=count, seed=plan.seed, prior=prior, bounds=plan.bounds)
        return DeviceSearch(
            bundle.space, remembered, targets, search, budget=plan.budget, seed=plan.seed, opening=openings[id(prior)]
        )

    run_id = resumed.run_id if resumed is not None else new_run_id()
    topics = Topics(fleet)
    session = round(time.time() * 1000)
    transport = _transport(request, store.devices(run_id) if resumed is not None else [], topics, session)
    campaign_log: list[Callable[[str], None]] = []
    key = request.signing_key
    signer = OrderSigner(key, request.fleet, round(time.time() * 1e6)) if key is not None else None
    refusals = Refusals(lambda line: campaign_log[0](line), time.monotonic)
    sharing = Sharing.of(run_id, key) if request.share else None
    wire = FleetWire(transport, topics, session, refusals, signer, sharing)
    blobs = BlobServer(
        wire.send_chunk, rate_bytes_per_s=request.bundle_rate_bytes_per_s, at_once=request.bundles_at_once
    )
    reference = blobs.add_file(bundle.path, bundle.sha256)
    metrics = Metrics(*request.metrics) if request.metrics is not None else None
    views: list[View] = [make_view(), *([metrics] if metrics is not None else [])]
    if request.local is None:
        views.append(Broadcast(transport, topics, run_id, time.monotonic))
    view = Audience(views)
    executor = ThreadPoolExecutor(
        max_workers=max(1, min(4, (os.cpu_count() or 2) // 2)),
        thread_name_prefix="search",
        initializer=yield_to_measurements,
    )
    campaign = Campaign(
        CampaignIdentity(run_id, bundle.path.name, reference, request.mirror),
        plan,
        wire=wire,
        blobs=blobs,
        store=store,
        models=models,
        make_search=make_search,
        executor=executor,
        clock=time.monotonic,
        wall_clock=time.time,
        asks_at_once=lambda: search.at_once,
        on_happening=view.event,
    )
    campaign_log.append(campaign.note)
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
    return RunningSearch(run_id, settings, campaign, store, models, transport, executor, view)


def _transport(
    request: SearchRequest, stored: list[DeviceRecord], topics: Topics, session: int
) -> NetworkProcess | MqttTransport | LocalTransport:
    client_id, will = f"coordinator-{secrets.token_hex(4)}", coordinator_will(topics, session)
    if request.local is not None:
        return LocalTransport(request.local.agent_options(stored), client_id, will)
    if request.broker is None:
        raise UsageError("where the devices are must be said: a broker, or this device alone (--local)")
    # Tasks that nobody takes in time expire at a broker that speaks MQTT 5; agents need 3.1.1 alone.
    kind = NetworkProcess if os.name == "posix" else MqttTransport
    return kind(request.broker, client_id, will, prefer_five=True)


def write_take_home(store: MeasurementStore, run_id: str, directory: Path, models: WinnerModels) -> list[str]:
    """Write a stored run's results, measurements and winners' files, built again from their stored statistics.

    Trouble with one device costs its part; returned is a line for each.
    """
    outcome = outcome_of(store, run_id)
    take_home = TakeHome(directory)
    verified = {
        (task.device, task.setting_label, task.architecture.fingerprint): task
        for task in store.tasks(run_id)
        if task.model_sha256 is not None
    }
    troubles = []
    for device in outcome.devices:
        for target in device.targets:
            if not target.met or target.architecture is None:
                continue
            try:
                task = verified[device.device, device.setting.label, target.architecture.fingerprint]
                assert task.model_sha256 is not None
                model = CalibratedModel(target.architecture, device.setting, task.model_sha256, task.calibration)
                take_home.add_winner(device, target, models.file(model))
            except OSError:  # of the disk, and so of every device
                raise
            except Exception as error:
                what = f"{device.label} target {target.target_ms:g} ms: its model file is not written"
                _log.error("%s", what, exc_info=error)
                troubles.append(f"{what}: {one_line(error)}")
    take_home.write(outcome)
    try:
        write_report(directory)
    except OSError:
        raise
    except Exception as error:
        _log.error("the report is not written", exc_info=error)
        troubles.append(f"the report is not written: {one_line(error)}; the results are")
    return troubles


def new_run_id() -> str:
    """Sorts by time, and two coordinators do not meet."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def stored_models(settings: RunSettings) -> BundleModels:
    """Winners' files of a stored run, for as long as its bundle is where it was."""
    return BundleModels(SupernetBundle.open(settings.supernet_path), None, None)


def _claimed_run(store: MeasurementStore, which: str, fleet: str) -> RunRecord:
    """A stored run, or the fleet's latest unfinished one that nobody works on, to be ours alone."""
    if which != "latest":
        run = store.run(which)
        if not store.claim_run(run.run_id):
            raise UsageError(f"another coordinator works on run {run.run_id}; end that one first, or start a new run")
        return run
    for run in reversed(store.runs()):
        unfinished = run.status in ("running", "interrupted", "partial")
        if unfinished and run.fleet == fleet and store.claim_run(run.run_id):
            return run
    raise UsageError(
        f"the store {store.url} holds no unfinished run of fleet {fleet!r} that nobody works on; see `fleetnas runs`"
    )


def _settings(request: SearchRequest, resumed: RunRecord | None) -> RunSettings:
    if resumed is not None:
        settings = RunSettings.model_validate(resumed.settings)
        changes: dict[str, object] = {}
        if request.supernet is not None:
            changes["supernet_path"] = str(request.supernet.absolute())
        if request.out is not None:
            changes["out"] = _text(request.out)
        return settings.model_copy(update=changes)
    if request.supernet is None or request.plan is None:
        raise UsageError("a new search needs --supernet and --targets; to go on with a stored run give --resume")
    bundle = SupernetBundle.open(request.supernet)
    manifest = bundle.manifest
    return RunSettings(
        plan=request.plan,
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
    bundle: SupernetBundle, calibration: Path | None, evaluation: Path | None
) -> tuple[ImageSource | None, ImageSource | None]:
    """Images to calibrate and to evaluate on: folders, or for the built-in digits its own parts."""
    manifest = bundle.manifest
    if manifest.dataset == "digits":
        return DigitsImages("calibration"), DigitsImages("test")

    def folder(path: Path | None) -> ImageSource | None:
        return ImageFolder(path, manifest.preprocessing, manifest.classes) if path is not None else None

    return folder(calibration), folder(evaluation)


def _text(path: Path | None) -> str | None:
    return str(path.absolute()) if path is not None else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


def _versions() -> dict[str, str]:
    installed = {package: list(metadata.distributions(name=package)) for package in _LISTED_PACKAGES}
    return {package: found[0].version for package, found in installed.items() if found}
