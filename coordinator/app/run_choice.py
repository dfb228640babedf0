"""The run of a request: a stored one that is claimed, or the settings of a new one."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from fleetnas.coordinator.app.request import LATEST, ImageFolders, NewRun, ResumedRun, SearchRequest
from fleetnas.coordinator.records.plan import CampaignPlan, RunKind, RunSettings, kind_of, settings_of
from fleetnas.coordinator.records.statuses import RunStatus
from fleetnas.coordinator.records.stored import RunRecord
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import HashMismatchError, UsageError
from fleetnas.fleet_protocol.suggestions import did_you_mean
from fleetnas.supernet_export.bundle import SupernetBundle

_LISTED_PACKAGES = ("fleetnas", "numpy", "onnx", "onnxruntime")
#: Statuses of runs that can be resumed: a killed coordinator leaves its run marked as running.
_RESUMABLE = (RunStatus.RUNNING, RunStatus.INTERRUPTED)


@dataclass(frozen=True)
class ChosenRun:
    """A run to drive, with its bundle open."""

    run_id: str
    created_unix_s: float
    settings: RunSettings
    bundle: SupernetBundle
    resumed: bool
    name: str | None = None
    """Of a new run, chosen by its user."""

    @property
    def out(self) -> Path | None:
        """Folder of results and winners' files."""
        return _path(self.settings.out)

    @property
    def card(self) -> Path | None:
        """Model card to rewrite once its target is met."""
        return _path(self.settings.card)

    @property
    def images(self) -> ImageFolders:
        """Folders of images to calibrate, to evaluate and to select on."""
        settings = self.settings
        return ImageFolders(
            _path(settings.calibration_images),
            _path(settings.evaluation_images),
            _path(settings.selection_images),
            some_classes=settings.some_classes,
        )

    def record(self, fleet: str) -> RunRecord:
        """The run as the store keeps it."""
        return RunRecord(
            self.run_id,
            fleet,
            self.bundle.path.name,
            self.bundle.sha256,
            self.settings.model_dump(mode="json"),
            self.created_unix_s,
            name=self.name,
        )


def choose_run(request: SearchRequest, fleet: str, store: MeasurementStore) -> ChosenRun:
    """Claim the stored run of a request, or name a new one; open its bundle.

    Raises:
        UsageError: there is no such run, another coordinator works on it, or the plan names unknown devices.
        BundleError: the supernet is no bundle.
        HashMismatchError: the bundle is not the one that the stored run was started with.
    """
    if isinstance(request.run, NewRun):
        _check_distrusted(request.run.plan, store)
        if request.run.name is not None:
            store.named_runs.check_free(request.run.name)
        bundle = SupernetBundle.open(request.run.supernet)
        settings = new_settings(request.run, request, bundle, store.distrusted())
        return ChosenRun(new_run_id(), time.time(), settings, bundle, False, request.run.name)
    stored = claimed_run(store, request.run.run, fleet, request.run.kind)
    settings = resumed_settings(request.run, request, stored)
    bundle = SupernetBundle.open(settings.supernet_path)
    if bundle.sha256 != stored.bundle_sha256:
        raise HashMismatchError(
            f"run {stored.run_id} was started with a bundle of SHA-256 {stored.bundle_sha256}; "
            f"{settings.supernet_path} now has {bundle.sha256}: bring that file back, or start a new run"
        )
    return ChosenRun(stored.run_id, stored.created_unix_s, settings, bundle, True)


def new_run_id() -> str:
    """Make a run id that sorts by time and is unique among coordinators."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"


def claimed_run(store: MeasurementStore, which: str, fleet: str | None, kind: RunKind = "search") -> RunRecord:
    """Claim the stored run that a user names, or with `LATEST` the latest interrupted one that no coordinator drives.

    `fleet` and `kind` are those of the latest run; None: of any fleet. One that is named may be of any.
    """
    if which != LATEST:
        run = store.named_runs.find(which)
        if not store.claim_run(run.run_id):
            raise UsageError(f"another coordinator works on run {run.run_id}; end that one first, or start a new run")
        return run
    runs = [run for run in store.runs() if fleet in (None, run.fleet) and kind_of(run) == kind]
    for run in reversed(runs):
        # A run that no device joined has nothing to resume.
        if run.status in _RESUMABLE and store.devices(run.run_id) and store.claim_run(run.run_id):
            return run
    ended = [run for run in runs if run.status not in _RESUMABLE]
    latest = f"; the latest that ended is {ended[-1].run_id} ({ended[-1].status}), see --resume RUN" if ended else ""
    sought = "run" if kind == "search" else "measurement"
    of_fleet = f" of fleet {fleet!r}" if fleet is not None else ""
    raise UsageError(
        f"the store {store.url} holds no interrupted {sought}{of_fleet} that nobody works on{latest}; `fleetnas runs` "
        "lists them all"
    )


def _check_distrusted(plan: CampaignPlan, store: MeasurementStore) -> None:
    known = store.known_devices()
    unknown = sorted(set(plan.prior_without) - known)
    if unknown:
        near = did_you_mean(unknown[0], sorted(known))
        raise UsageError(
            f"--prior-without {', '.join(unknown)}: the store {store.url} holds no such device{near} check the name, "
            "or leave it out"
        )


def new_settings(
    run: NewRun, request: SearchRequest, bundle: SupernetBundle, distrusted: Collection[str]
) -> RunSettings:
    """Make the settings of a new run; no prior is learned from the devices `distrusted`."""
    # Stored with the run, so that a resumed run has the priors that it began with, whatever is distrusted by then.
    without = tuple(sorted({*run.plan.prior_without, *distrusted}))
    manifest = bundle.manifest
    return RunSettings(
        plan=run.plan.model_copy(update={"prior_without": without}),
        supernet_path=str(run.supernet.absolute()),
        design_space=manifest.space,
        space_options=dict(bundle.space.options),
        source=manifest.provenance.source,
        checkpoint_sha256=manifest.provenance.sha256,
        dataset=manifest.dataset,
        class_names=manifest.class_names,
        preprocessing=manifest.preprocessing,
        calibration_images=_text(request.images.calibration),
        evaluation_images=_text(request.images.evaluation),
        selection_images=_text(request.images.selection),
        some_classes=request.images.some_classes,
        out=_text(request.out),
        card=_text(run.card),
        versions=_versions(),
        connection=request.connection,
    )


def resumed_settings(run: ResumedRun, request: SearchRequest, stored: RunRecord) -> RunSettings:
    """Read the settings of a stored run, and apply the changes that the request asks for."""
    settings = settings_of(stored)
    paths = {
        "supernet_path": run.supernet,
        "out": request.out,
        "calibration_images": request.images.calibration,
        "evaluation_images": request.images.evaluation,
        "selection_images": request.images.selection,
    }
    changes: dict[str, str | bool | CampaignPlan] = {
        name: str(path.absolute()) for name, path in paths.items() if path is not None
    }
    if request.images.some_classes:
        changes["some_classes"] = True
    if run.devices:
        # The stored order first; devices that take part already are not repeated.
        named = tuple(dict.fromkeys((*settings.plan.devices, *run.devices)))
        changes["plan"] = settings.plan.model_copy(update={"devices": named})
    return settings.model_copy(update=changes)


def _text(path: Path | None) -> str | None:
    return str(path.absolute()) if path is not None else None


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


def _versions() -> dict[str, str]:
    installed = {package: list(metadata.distributions(name=package)) for package in _LISTED_PACKAGES}
    return {package: found[0].version for package, found in installed.items() if found}
