"""A fleet without devices: agents on an in-memory broker whose latencies come from a hidden table plus noise."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fleetnas.coordinator.campaign.campaign import Campaign
from fleetnas.coordinator.campaign.planning_pool import PlanningPool
from fleetnas.coordinator.campaign.resumption import take_up
from fleetnas.coordinator.campaign.winner_builder import CalibratedModel, WinnerBuilder
from fleetnas.coordinator.fleet.agent_link import AgentLink, Sharing, coordinator_will
from fleetnas.coordinator.fleet.blob_server import BlobServer
from fleetnas.coordinator.fleet.connection import FleetConnection
from fleetnas.coordinator.fleet.message_budget import MessageBudget
from fleetnas.coordinator.predictors.features import FeatureMap
from fleetnas.coordinator.records.campaign_identity import CampaignIdentity
from fleetnas.coordinator.records.clocks import Clocks
from fleetnas.coordinator.records.events import Event
from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings
from fleetnas.coordinator.records.stored import EvaluationRecord, ImagePart, RunRecord
from fleetnas.coordinator.search.problem import AccuracyModel, PredictedAccuracy
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.coordinator.tuning.setting_tuner import SettingTuner
from fleetnas.coordinator.tuning.subnet_tuner import SubnetTuner
from fleetnas.coordinator.tuning.target_solver import BundleTargetSolver
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.codec import decode, decode_task, encode
from fleetnas.fleet_protocol.messages import (
    Accepted,
    AgentInfo,
    AgentState,
    BlobReference,
    Failed,
    Inventory,
    Measurement,
    Message,
    Result,
    RuntimeSetting,
    TaskKey,
)
from fleetnas.fleet_protocol.orders import Acknowledgement, CancelTask, MeasurementTask, MeasureTask, ModelTask
from fleetnas.fleet_protocol.security.signing import OrderSigner
from fleetnas.fleet_protocol.topics import AgentDown, Topics
from fleetnas.fleet_protocol.transports.base import Connected, Received, TransportEvent, Will, take_events
from fleetnas.fleet_protocol.transports.memory import MemoryBroker
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.evaluation.answers import ClassAnswers
from fleetnas.supernet_export.spaces.base import DesignSpace
from fleetnas.supernet_export.spaces.digits import DigitsSpace

SPACE = DigitsSpace()
Agent = TypeVar("Agent", bound="SimulatedAgent")
TOPICS = Topics("test")
BUNDLE = BlobReference(sha256="b" * 64, size=1000)

_FEATURES = FeatureMap(SPACE)
_TYPICAL = _FEATURES.features(SPACE.sample(300, np.random.default_rng(0))).mean(axis=0)


def accuracy_predictor() -> AccuracyPredictor:
    """Likes whatever is larger, of some things more than of others, and ever less of it."""
    width = SPACE.one_hot(SPACE.smallest()).shape[1]
    liking = np.random.default_rng(3).uniform(0.5, 1.5, width) * np.tile([1.0, 2.0, 3.0], width)[:width] * 0.004
    hidden = np.stack([-liking, -liking]).astype(np.float32)
    weights = [hidden, np.array([[-0.4, -0.6]], np.float32)]
    return AccuracyPredictor(weights, [np.array([0.15, 0.4], np.float32), np.array([0.98], np.float32)])


ACCURACY = PredictedAccuracy(SPACE, accuracy_predictor())


class HiddenDevice:
    """Latency of a device that nobody has modelled: linear in the features, with a discrepancy of a few percent."""

    def __init__(self, seed: int, noise: float = 0.01, like: int | None = None, draw: int = 0) -> None:
        """With `like`, a relative of the device of that seed: every cost within 20 % of its.

        Another `draw` is of the same device with other noise.
        """
        self._rng = np.random.default_rng([seed, 1, draw] if draw else [seed, 1])
        own = np.random.default_rng([seed, 2])
        if like is None:
            weights = own.uniform(0.2, 2.0, len(_FEATURES))
        else:
            weights = np.random.default_rng([like, 2]).uniform(0.2, 2.0, len(_FEATURES))
            weights = weights * own.uniform(0.8, 1.2, len(_FEATURES))
        self._weights = 2.0 * weights / np.maximum(_TYPICAL * len(_FEATURES), 1e-9)
        self._noise = noise

    def latency_ms(self, architecture: Architecture) -> float:
        genomes = SPACE.encode([architecture])
        wave = 1 + 0.02 * np.sin(7.0 * float(genomes[0] @ np.arange(SPACE.gene_count)))
        return float((_FEATURES.features(genomes) @ self._weights)[0] * wave)

    def reseed(self, copy: int) -> None:
        """Give a copy of the device noise of its own."""
        self._rng = np.random.default_rng([copy, 3])

    def measure(self, task: MeasureTask, finished_unix_s: float) -> Measurement:
        median = self.latency_ms(task.architecture) * float(np.exp(self._rng.normal(0, self._noise)))
        return measurement(median, file_sha256(task.architecture, task.calibration), finished_unix_s)


def measurement(median_ms: float, sha256: str = "c" * 64, finished_unix_s: float = 1.0, **changes: Any) -> Measurement:
    values: dict[str, Any] = {
        "model_sha256": sha256,
        "model_bytes": 1000,
        "median_ms": median_ms,
        "mad_ms": 0.01 * median_ms,
        "p90_ms": 1.02 * median_ms,
        "min_ms": 0.98 * median_ms,
        "runs": 50,
        "half_width_percent": 0.8,
        "quality": "ok",
        "undisturbed_ms": median_ms,
        "undisturbed_half_width_percent": changes.get("half_width_percent", 0.8),
        "times_us": (1000.0 * median_ms,) * 3,
        "provider": "CPUExecutionProvider",
        "build_ms": 5.0,
        "load_ms": 5.0,
        "finished_unix_s": finished_unix_s,
    }
    return Measurement(**{**values, **changes})


def file_sha256(architecture: Architecture, calibration: BlobReference | None) -> str:
    statistics = calibration.sha256 if calibration is not None else ""
    return hashlib.sha256(f"{architecture.fingerprint} {statistics}".encode()).hexdigest()


@dataclass
class StandInModels:
    """Winners' files by hash alone: slicing and calibrating have their own tests."""

    space: DesignSpace = SPACE
    predicted: AccuracyModel = ACCURACY

    def calibrate(self, architecture: Architecture, setting: RuntimeSetting) -> CalibratedModel:
        blob = f"statistics of {architecture.fingerprint}".encode()
        reference = BlobReference(sha256=hashlib.sha256(blob).hexdigest(), size=len(blob))
        return CalibratedModel(architecture, setting, file_sha256(architecture, reference), blob)

    def calibrates_at_once(self, architecture: Architecture, setting: RuntimeSetting) -> bool:
        return int(architecture.fingerprint, 16) % 2 == 0

    def evaluates_at_once(self, model: CalibratedModel) -> bool:
        return int(model.sha256, 16) % 2 == 0

    def file(self, model: CalibratedModel) -> bytes:
        raise NotImplementedError

    def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
        return float(self.predicted.predict(self.space.encode([model.architecture]))[0]), 600

    def answers(self, model: CalibratedModel, part: ImagePart) -> ClassAnswers | None:
        return None

    def known_answers(
        self, architecture: Architecture, setting: RuntimeSetting, part: ImagePart
    ) -> ClassAnswers | None:
        return None

    def adopt(self, evaluations: Iterable[EvaluationRecord]) -> None:
        pass


def acknowledged_in(topic: str, payload: bytes) -> tuple[TaskKey, ...]:
    """The results that a message of the coordinator acknowledges, by itself or with a task."""
    address = TOPICS.parse(topic)
    if not isinstance(address, AgentDown):
        return ()
    if address.channel == "ack":
        return (decode(Acknowledgement, payload).task,)
    task = decode_task(payload) if address.channel == "task" else None
    return task.stored if isinstance(task, MeasureTask | ModelTask) else ()


class InlineExecutor(Executor):
    """Does work at once, on the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - the future passes it on
            future.set_exception(error)
        return future


@dataclass
class FakeClock:
    """Seconds that pass when told to."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def unix(self) -> float:
        return 1.7e9 + self.now_s


class SimulatedAgent:
    """Speaks the wire contract as the real agent does: a queue, an outbox, repeats until acknowledged."""

    def __init__(
        self,
        broker: MemoryBroker,
        name: str,
        clock: FakeClock,
        *,
        seed: int = 0,
        settings: Sequence[RuntimeSetting] = (RuntimeSetting(),),
        noise: float = 0.01,
        like: int | None = None,
        seconds_per_task: float = 1.0,
        session: int = 1,
        accepts_models: bool = False,
    ) -> None:
        self.name = name
        self.clock = clock
        self.session = session
        self.instance = f"{name}-{session}"
        self.info = AgentInfo(
            agent=name,
            session=session,
            profile=DeviceProfile(model="simulated", machine="none", cores=1),
            settings=tuple(settings),
            versions={},
            accepts_models=accepts_models,
        )
        #: Model files that it was sent, and what each takes.
        self.files: list[ModelTask] = []
        self.file_ms = 10.0
        self.devices = {setting: HiddenDevice(seed + 31 * i, noise, like) for i, setting in enumerate(settings)}
        self.queue: deque[MeasurementTask] = deque()
        self.outbox: dict[TaskKey, bytes] = {}
        self.answered: dict[TaskKey, bytes] = {}
        self.measured: list[tuple[RuntimeSetting, Architecture, bool]] = []
        self.fails: Callable[[Any], str | None] = lambda _: None
        self.mute = False
        self._ready_at_s = 0.0
        self._seconds_per_task = seconds_per_task
        self._sent_at_s = 0.0
        state = AgentState(state="lost", session=session, instance=self.instance)
        self.transport = broker.transport(name, Will(TOPICS.up(name, "state"), encode(state)))
        for channel in ("task", "ack"):
            self.transport.subscribe(TOPICS.down(name, channel))  # type: ignore[arg-type]
        self.transport.subscribe(TOPICS.coordinator)

    def start(self) -> None:
        self.transport.start()

    def step(self) -> None:
        while (event := self.transport.poll(0)) is not None:
            if isinstance(event, Connected):
                self._say("state", AgentState(state="ready", session=self.session, instance=self.instance), retain=True)
                self._say("info", self.info, retain=True)
                self._say_next()
            elif isinstance(event, Received):
                self._hear(event)
        if self.queue and self.clock.now_s >= self._ready_at_s:
            self._work(self.queue.popleft())
        if self.clock.now_s - self._sent_at_s > 30:
            self.send_outbox()

    def _hear(self, message: Received) -> None:
        if message.topic == TOPICS.coordinator:
            self._say_next()
        elif message.topic == TOPICS.down(self.name, "ack"):
            self.outbox.pop(decode(Acknowledgement, message.payload).task, None)
        else:
            task = decode_task(message.payload)
            if isinstance(task, CancelTask):
                self.queue = deque(waiting for waiting in self.queue if waiting.task != task.task)
                return
            for key in task.stored:
                self.outbox.pop(key, None)
            if task.task in self.answered:
                self.transport.publish(TOPICS.up(self.name, "task"), self.answered[task.task])
            elif all(waiting.task != task.task for waiting in self.queue):
                if not self.queue:
                    self._ready_at_s = self.clock.now_s + self._seconds_per_task
                self.queue.append(task)
                self._say("task", Accepted(task=task.task))

    def _work(self, task: MeasurementTask) -> None:
        self._ready_at_s = self.clock.now_s + self._seconds_per_task
        if self.mute:
            return
        reason = self.fails(task)
        if isinstance(task, ModelTask):
            self.files.append(task)
        else:
            self.measured.append((task.setting, task.architecture, task.calibration is not None))
        answer: Message
        if reason is not None:
            answer = Failed.model_validate({"task": task.task, "reason": reason})
        else:
            answer = Result(task=task.task, measurement=self._measure(task))
        self.answered[task.task] = self.outbox[task.task] = encode(answer)
        self.transport.publish(TOPICS.up(self.name, "task"), self.outbox[task.task])

    def _measure(self, task: MeasurementTask) -> Measurement:
        if isinstance(task, ModelTask):
            return measurement(self.file_ms, task.model.sha256, self.clock.unix())
        return self.devices[task.setting].measure(task, self.clock.unix())

    def send_outbox(self) -> None:
        self._sent_at_s = self.clock.now_s
        for payload in list(self.outbox.values()):
            self.transport.publish(TOPICS.up(self.name, "task"), payload)

    def _say_next(self) -> None:
        self._say(
            "inventory",
            Inventory(
                session=self.session, queued=tuple(t.task for t in self.queue), unacknowledged=tuple(self.outbox)
            ),
        )
        self.send_outbox()

    def _say(self, channel: Any, message: Message, *, retain: bool = False) -> None:
        self.transport.publish(TOPICS.up(self.name, channel), encode(message), retain=retain)


#: Events that the driver takes together.
MOST_EVENTS = 500


class CheckedCampaign(Campaign):
    """A campaign whose tasks, queues and targets are validated after all events taken together, and after a tick."""

    def on_events(self, events: Iterable[TransportEvent]) -> None:
        super().on_events(events)
        self.validate()

    def on_tick(self) -> None:
        super().on_tick()
        self.validate()


@dataclass
class Simulation:
    """One campaign over simulated agents."""

    plan: CampaignPlan
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    clock: FakeClock = field(default_factory=FakeClock)
    agents: list[SimulatedAgent] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    run_id: str = "run-1"
    starts: int = 0
    #: Rounds are planned on the campaign's own thread.
    at_once: bool = False
    #: Of the coordinator; and whether it shares what agents say with others.
    client_id: str = "coordinator"
    share: bool = False
    #: Whether what agents may say is limited, as it is in a real search.
    limited: bool = False
    #: Signs what the coordinator says; None: unsigned.
    signer: OrderSigner | None = None
    models: WinnerBuilder = field(default_factory=StandInModels)
    executor: Executor = field(default_factory=InlineExecutor)
    #: What is searched, and how thoroughly.
    space: DesignSpace = SPACE
    accuracy: AccuracyModel = ACCURACY
    search_rounds: int = 1
    #: The beginning of all searches; None: by the plan.
    design: InitialDesign | None = None
    #: Whether the state of all tasks and targets is validated after all events taken together and after a tick.
    checked: bool = True
    #: Whether the campaign takes the events of a step together, as the driver has it; else one by one.
    together: bool = False
    #: In memory, and so outlives the simulated coordinator as a file outlives a real one.
    store: MeasurementStore = field(default_factory=lambda: MeasurementStore.open("sqlite://"))

    def add(self, name: str, **options: Any) -> SimulatedAgent:
        return self.take_in(SimulatedAgent(self.broker, name, self.clock, **options))

    def take_in(self, agent: Agent) -> Agent:
        """Start an agent of this fleet's broker and clock."""
        agent.start()
        self.agents.append(agent)
        return agent

    def make_search(self, info: AgentInfo, setting: RuntimeSetting) -> SettingTuner:
        del setting
        plan = self.plan
        if plan.architectures:
            return SubnetTuner(self.space, plan.architectures, target_ms=plan.target_ms, accuracy=self.accuracy)
        design = self.design or InitialDesign(
            self.space, count=min(plan.initial_design, plan.budget), seed=plan.seed, bounds=plan.bounds
        )
        solver = BundleTargetSolver(
            self.space, self.accuracy, plan.strategy, bounds=plan.bounds, rounds=self.search_rounds
        )
        return DeviceTuner(
            design,
            self.accuracy,
            plan.request_for(info.agent, info),
            solver,
            budget=plan.budget,
            rerank=plan.rerank,
            protocol=plan.protocol,
        )

    def begin(self, *, resume: bool = False) -> Campaign:
        """Start a coordinator; with `resume`, where the last one was when it vanished."""
        self.starts += 1
        identity = CampaignIdentity(self.run_id, "digits.supernet", BUNDLE)
        transport = self.broker.transport(self.client_id, coordinator_will(TOPICS, self.starts))
        self.refused: list[str] = []
        sharing = Sharing(self.run_id) if self.share else None
        budget = MessageBudget(self.clock, self.refused.append) if self.limited else None
        link = AgentLink(transport, TOPICS, self.starts, self.refused.append, self.signer, sharing, budget)
        if not resume:
            settings = RunSettings(
                plan=self.plan,
                supernet_path="digits.supernet",
                design_space=self.space.name,
                space_options=dict(self.space.options),
                source="simulated",
            ).model_dump(mode="json")
            self.store.create_run(RunRecord(self.run_id, "test", "digits.supernet", BUNDLE.sha256, settings, 1.0))
        kind = CheckedCampaign if self.checked else Campaign
        self.campaign = kind(
            identity,
            self.plan,
            FleetConnection(link, BlobServer(link.send_chunk)),
            self.store,
            planning=PlanningPool(self.models, self.executor, lambda: self.at_once),
            make_search=self.make_search,
            clocks=Clocks(self.clock, self.clock.unix),
            emit=self.events.append,
        )
        if resume:
            self.models.adopt(self.store.evaluations.of_run(self.run_id))
            take_up(self.campaign, self.store, self.space)
        self.transport, self.link = transport, link
        self.campaign.start()
        return self.campaign

    def step(self, seconds: float = 1.0) -> None:
        for agent in self.agents:
            agent.step()
        self.take_waiting()
        self.campaign.on_tick()
        self.clock.now_s += seconds

    def take_waiting(self) -> None:
        """Have the campaign take all events that wait."""
        while events := take_events(self.transport, 0.0, MOST_EVENTS if self.together else 1):
            self.campaign.on_events(events)

    def run(self, most_steps: int = 2000, until: Callable[[], bool] = lambda: False) -> None:
        for _ in range(most_steps):
            if self.campaign.finished or until():
                return
            self.step()
        raise AssertionError(f"not finished after {most_steps} steps: {list(self.campaign.log)[-5:]}")

    def vanish(self) -> None:
        """The coordinator is killed: what it had in hand is gone, its store is not."""
        self.broker.cut(self.client_id)
