"""Prometheus metrics of a search on a port of the coordinator; `docs/monitoring.md` lists them.

Counters begin at zero with the coordinator, as Prometheus expects; gauges show the present state.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import get_args

from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.records.events import Event, MeasurementFailed, MeasurementTaken
from fleetnas.coordinator.records.snapshot import DeviceSnapshot, DeviceState, Snapshot
from fleetnas.coordinator.records.totals import target_totals
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.addresses import check_host, host_and_port
from fleetnas.fleet_protocol.errors import MissingDependencyError, UsageError
from fleetnas.fleet_protocol.installing import install_package

#: From a commit into the page cache to a disk that is busy.
_STORE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_SETTING = ("device", "setting")
_STOP_S = 5.0


class Metrics:
    """Counts events and serves the present state over HTTP for Prometheus; a `View`."""

    def __init__(self, address: str, port: int) -> None:
        """Listen at once; port 0 takes a free one. `UsageError` where the port cannot be had."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
        except ImportError as error:
            raise MissingDependencyError(
                f"metrics need prometheus-client ({error}); run: {install_package('prometheus-client')}"
            ) from error
        registry = CollectorRegistry()
        self._run = Gauge("fleetnas_run_info", "The run at work.", ("run_id", "supernet"), registry=registry)
        self._done = Gauge("fleetnas_run_done_ratio", "Finished share of the expected work.", registry=registry)
        self._left = Gauge("fleetnas_run_left_seconds", "Expected time to the end of the run.", registry=registry)
        self._agents = Gauge("fleetnas_agents", "Agents of the fleet by state.", ("state",), registry=registry)
        self._measurements = Counter(
            "fleetnas_measurements", "Measurements stored.", (*_SETTING, "quality"), registry=registry
        )
        self._failures = Counter(
            "fleetnas_failures", "Measurements that failed on their device.", (*_SETTING, "reason"), registry=registry
        )
        self._results = Counter("fleetnas_results_stored", "Measurements and failures stored.", registry=registry)
        self._queues = Gauge("fleetnas_queue_length", "What waits, by queue.", ("queue",), registry=registry)
        self._store_s = Histogram(
            "fleetnas_store_write_seconds",
            "Time of a writing transaction of the store.",
            buckets=_STORE_BUCKETS_S,
            registry=registry,
        )
        self._error = Gauge(
            "fleetnas_predictor_error_ratio",
            "Held-out mean absolute error of the latency predictor, relative.",
            _SETTING,
            registry=registry,
        )
        self._settings = Gauge(
            "fleetnas_device_settings", "Device settings of the run by state.", ("state",), registry=registry
        )
        self._slowdown = Gauge(
            "fleetnas_largest_slowdown_ratio",
            "Largest latency as it ran over latency at undisturbed speed.",
            _SETTING,
            registry=registry,
        )
        self._regimes = Gauge("fleetnas_regimes", "Lasting speeds of the device.", _SETTING, registry=registry)
        self._targets = Gauge("fleetnas_targets", "Latency targets by state.", (*_SETTING, "state"), registry=registry)
        self._served = Counter("fleetnas_blob_bytes", "Bytes of bundles and calibrations served.", registry=registry)
        self._reconnects = Counter(
            "fleetnas_broker_reconnects", "Connections to the broker after the first.", registry=registry
        )
        self._campaign: Campaign | None = None
        self._blobs: BlobServer | None = None
        self._ignored = Gauge("fleetnas_agents_ignored", "Agents that flood, ignored now.", registry=registry)
        self._dropped = Counter("fleetnas_messages_dropped", "Messages beyond a budget.", registry=registry)
        self._counted_connections, self._counted_bytes, self._counted_dropped = 0, 0, 0
        address = check_host(address) if address else address
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except (OSError, OverflowError) as error:
            where = host_and_port(address, port)
            raise UsageError(
                f"metrics cannot be served on {where}: {error}; give another --metrics-port or --metrics-address"
            ) from error

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return int(self._server.server_port)

    def attach(self, campaign: Campaign, blobs: BlobServer, store: MeasurementStore) -> None:
        """Read these at every update; both run on the campaign's thread."""
        self._campaign, self._blobs = campaign, blobs
        self._run.labels(campaign.identity.run_id, campaign.identity.supernet).set(1)
        store.observe_writes(self._store_s.observe)

    def event(self, event: Event) -> None:
        """Count a measurement or a failure."""
        if isinstance(event, MeasurementTaken):
            self._results.inc()
            self._measurements.labels(event.device, event.setting, event.quality).inc()
        elif isinstance(event, MeasurementFailed):
            self._results.inc()
            self._failures.labels(event.device, event.setting, event.reason).inc()

    def update(self, snapshot: Snapshot) -> None:
        """Set the gauges to a snapshot."""
        if snapshot.progress is not None:
            self._done.set(snapshot.progress.done)
            self._left.set(snapshot.progress.left_s)
        states = Tally(device.state for device in snapshot.devices)
        for state in get_args(DeviceState):
            self._settings.labels(state).set(states[state])
        for device in snapshot.devices:
            self._take_setting(device)
        if self._campaign is not None and self._blobs is not None:
            self._take(self._campaign, self._blobs)

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join(_STOP_S)
        self._server.server_close()

    def _take_setting(self, device: DeviceSnapshot) -> None:
        labels = (device.device, device.setting_label)
        if device.predictor_error is not None and device.predictor_error.is_reliable:
            self._error.labels(*labels).set(device.predictor_error.mape_percent / 100)
        if device.quality.largest_slowdown is not None:
            self._slowdown.labels(*labels).set(device.quality.largest_slowdown)
        self._regimes.labels(*labels).set(device.quality.regimes)
        totals = target_totals([device])
        # On a device setting that measures no more, every target that is not met is missed, chosen or not.
        missed = totals.asked - totals.met if device.ended else sum(target.met is False for target in device.targets)
        self._targets.labels(*labels, "met").set(totals.met)
        self._targets.labels(*labels, "missed").set(missed)
        self._targets.labels(*labels, "open").set(totals.asked - totals.met - missed)

    def _take(self, campaign: Campaign, blobs: BlobServer) -> None:
        states = Tally(
            "duplicate" if entry.duplicate else entry.liveness for entry in campaign.registry.agents.values()
        )
        for state in ("unknown", "ready", "busy", "leaving", "lost", "duplicate"):
            self._agents.labels(state).set(states[state])
        setting_runs = campaign.setting_runs.values()
        self._queues.labels("ready").set(sum(len(setting_run.ready) for setting_run in setting_runs))
        self._queues.labels("leased").set(sum(len(setting_run.leased) for setting_run in setting_runs))
        self._queues.labels("untold").set(sum(len(setting_run.inbox) for setting_run in setting_runs))
        self._queues.labels("blob_requests").set(blobs.waiting)
        sent = sum(blobs.sent.values())
        self._served.inc(sent - self._counted_bytes)
        self._counted_bytes = sent
        reconnects = max(0, campaign.connection.count - 1)
        self._reconnects.inc(reconnects - self._counted_connections)
        self._counted_connections = reconnects
        link = campaign.connection.link
        self._ignored.set(len(link.ignored))
        self._dropped.inc(link.dropped - self._counted_dropped)
        self._counted_dropped = link.dropped
