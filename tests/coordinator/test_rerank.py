"""Winners that selection images choose among the best predicted candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
from rigs.simulated_fleet import ACCURACY, SPACE, HiddenDevice, Simulation, StandInModels, measurement
from rigs.tuners import SEARCH, slower_than_when_explored

from fleetnas.coordinator.campaign.winner_builder import CalibratedModel, file_key
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.stored import EvaluationRecord, ImagePart
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.tuning.device_tuner import DeviceTuner
from fleetnas.coordinator.tuning.initial_design import InitialDesign
from fleetnas.fleet_protocol.architecture import Architecture
from fleetnas.fleet_protocol.errors import RuntimeUnavailableError, UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.evaluation.answers import ClassAnswers

IMAGES, CLASSES = 400, 4
LABELS = [image % CLASSES for image in range(IMAGES)]


def planted_accuracy(architecture: Architecture) -> float:
    """A truth that has nothing to do with the predictor's order among the best candidates."""
    return 0.5 + int(hashlib.sha256(architecture.fingerprint.encode()).hexdigest()[:4], 16) % 200 / 1000


def planted_answers(architecture: Architecture) -> ClassAnswers:
    right = round(IMAGES * planted_accuracy(architecture))
    return ClassAnswers.of(CLASSES, LABELS, [(label + (i >= right)) % CLASSES for i, label in enumerate(LABELS)])


def tuner(rerank: int, targets: str = "2,4,8", seed: int = 0) -> DeviceTuner:
    return DeviceTuner(
        InitialDesign(SPACE, count=8, seed=seed),
        ACCURACY,
        TargetRequest.parse(targets),
        SEARCH,
        budget=20,
        rerank=rerank,
    )


def driven(search: DeviceTuner, device: HiddenDevice) -> dict[str, float]:
    """Drive a search to its end; returns the candidates whose accuracy it asked for."""
    evaluated: dict[str, float] = {}
    for _ in range(300):
        proposals = search.ask(4)
        search.validate()
        if search.finished:
            return evaluated
        wanted = search.wanted_accuracies()
        assert proposals or wanted, "it neither asks nor ends"
        for architecture in wanted:
            assert architecture.fingerprint not in evaluated, "it asks twice"
            evaluated[architecture.fingerprint] = planted_accuracy(architecture)
            search.tell_accuracy(architecture, planted_accuracy(architecture))
        for proposal in proposals:
            search.tell(proposal, measurement(device.latency_ms(proposal.architecture)))
            search.validate()
    raise AssertionError("it does not end")


def test_selection_images_put_a_wrong_order_of_the_predictor_right() -> None:
    device = HiddenDevice(seed=1)
    by_predictor, by_images = tuner(0), tuner(8)
    assert driven(by_predictor, device) == {}
    evaluated = driven(by_images, device)
    assert 8 <= len(evaluated) <= 24
    gains = []
    for predicted, selected in zip(by_predictor.targets, by_images.targets, strict=True):
        assert predicted.met
        assert selected.met
        assert predicted.architecture is not None
        assert selected.architecture is not None
        assert device.latency_ms(selected.architecture) <= selected.target_ms
        assert selected.architecture.fingerprint in evaluated
        gains.append(planted_accuracy(selected.architecture) - planted_accuracy(predicted.architecture))
    assert min(gains) >= 0
    assert max(gains) > 0.02


def test_each_target_has_the_best_evaluated_candidate_within_it() -> None:
    device, search = HiddenDevice(seed=2), tuner(8)
    evaluated = driven(search, device)
    best = 0.0
    for state in search.targets:
        assert state.architecture is not None
        accuracy = evaluated[state.architecture.fingerprint]
        assert accuracy >= best, "a looser target has a worse winner"
        best = accuracy


def test_candidates_are_the_best_predicted_ones() -> None:
    search = tuner(5, "4")
    device = HiddenDevice(seed=3)
    listed: list[Architecture] = []
    while not search.finished and not listed:
        for proposal in search.ask(4):
            search.tell(proposal, measurement(device.latency_ms(proposal.architecture)))
        listed = search.wanted_accuracies()
    assert len(listed) == 5
    genomes = SPACE.encode(listed)
    assert len(np.unique(genomes, axis=0)) == 5
    # Of a large sample within the target, hardly any is predicted better than the worst candidate.
    sample = SPACE.sample(3000, np.random.default_rng(0))
    within = [device.latency_ms(architecture) <= 4 for architecture in SPACE.decode(sample)]
    worst = float(ACCURACY.predict(genomes).min())
    assert float(np.mean(ACCURACY.predict(sample[within]) > worst)) < 0.01


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_replaced_targets_have_candidates_and_a_resumed_run_replaces_them_too(seed: int) -> None:
    """A run is told again without its accuracies, which are asked for once it goes on."""
    whole, answer = tuner(4, "auto:4"), slower_than_when_explored(seed, 1.2, 2.2)
    told, ended = [], 0
    while not whole.finished:
        for architecture in whole.wanted_accuracies():
            whole.tell_accuracy(architecture, planted_accuracy(architecture))
        for proposal in whole.ask(100):
            told.append((proposal, answer(proposal)))
            whole.tell(*told[-1])
            ended = ended or len(told) * ("in place of" in whole.targets_note)
        assert len(told) < 300
    assert "in place of" in whole.targets_note
    for upto in (ended - 1, ended, len(told)):
        resumed = tuner(4, "auto:4")
        for proposal, outcome in told[:upto]:
            resumed.tell(proposal, outcome)
        later = told[upto:]
        while not resumed.finished:
            for architecture in resumed.wanted_accuracies():
                resumed.tell_accuracy(architecture, planted_accuracy(architecture))
            for proposal in resumed.ask(100):
                place = next(i for i, (other, _) in enumerate(later) if other.key == proposal.key)
                resumed.tell(proposal, later.pop(place)[1])
        assert not later
        assert [state.key for state in resumed.targets] == [state.key for state in whole.targets]
        assert [state.architecture for state in resumed.targets] == [state.architecture for state in whole.targets]


def test_files_that_cannot_be_evaluated_leave_the_choice_to_the_predictor() -> None:
    device = HiddenDevice(seed=1)
    without, blind = tuner(0), tuner(6)
    driven(without, device)
    for _ in range(300):
        proposals = blind.ask(4)
        if blind.finished:
            break
        for architecture in blind.wanted_accuracies():
            blind.tell_accuracy(architecture, None)
        for proposal in proposals:
            blind.tell(proposal, measurement(device.latency_ms(proposal.architecture)))
    assert [state.architecture for state in blind.targets] == [state.architecture for state in without.targets]


@dataclass
class PlantedModels(StandInModels):
    """Files whose answers to selection images are planted; counts how often each is evaluated."""

    evaluated: dict[tuple[tuple[str, str, str], str], int] = field(default_factory=dict)
    known: dict[tuple[tuple[str, str, str], str], ClassAnswers] = field(default_factory=dict)
    parts: tuple[ImagePart, ...] = ("selection",)
    trouble: Exception | None = None

    def answers(self, model: CalibratedModel, part: ImagePart) -> ClassAnswers | None:
        if part not in self.parts:
            return None
        if self.trouble is not None:
            raise self.trouble
        key = file_key(model.architecture, model.setting), part
        if key not in self.known:
            self.evaluated[key] = self.evaluated.get(key, 0) + 1
            self.known[key] = planted_answers(model.architecture)
        return self.known[key]

    def known_answers(
        self, architecture: Architecture, setting: RuntimeSetting, part: ImagePart
    ) -> ClassAnswers | None:
        return self.known.get((file_key(architecture, setting), part))

    def adopt(self, evaluations: Iterable[EvaluationRecord]) -> None:
        self.known |= {(each.file_key, each.part): each.class_answers for each in evaluations}


def campaign(models: PlantedModels, rerank: int = 6, agents: int = 2) -> Simulation:
    plan = CampaignPlan(targets="auto:3", budget=16, initial_design=8, rerank=rerank)
    fleet = Simulation(plan, models=models, search_rounds=2)
    for number in range(agents):
        fleet.add(f"pi{number}", seed=number, like=0)
    fleet.begin()
    return fleet


def winners(fleet: Simulation) -> list[tuple[str, float, str, str | None]]:
    return [
        (device.device, target.target_ms, target.architecture.fingerprint, target.sha256)
        for device in outcome_of(fleet.store, "run-1").devices
        for target in device.targets
        if target.architecture is not None
    ]


def test_a_campaign_evaluates_each_file_once_and_keeps_its_answers() -> None:
    models = PlantedModels()
    fleet = campaign(models)
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert set(models.evaluated.values()) == {1}
    stored = fleet.store.evaluations.of_run("run-1")
    assert {(each.file_key, each.part) for each in stored} == set(models.evaluated)
    for device in outcome_of(fleet.store, "run-1").devices:
        for target in device.targets:
            assert target.architecture is not None
            assert target.selection == planted_answers(target.architecture)
            assert target.answers is None
    said = [line for line in fleet.campaign.log if "selection images" in line]
    assert any("candidates evaluated on 400 selection images" in line for line in said)


def test_the_view_shows_how_many_candidates_are_evaluated() -> None:
    fleet = campaign(PlantedModels(), agents=1)
    details = []
    while not fleet.campaign.finished:
        fleet.step()
        details += [device.state_detail for device in fleet.campaign.snapshot(0.0).devices]
    shown = [detail for detail in details if "selection images" in detail]
    assert shown[0].startswith("for candidates on selection images, 1 of ")
    counts = [int(detail.split(", ")[1].split(" ")[0]) for detail in shown]
    assert counts == sorted(counts)
    assert len(set(counts)) > 2


def test_a_killed_coordinator_ends_with_the_same_winners_and_evaluates_nothing_again() -> None:
    whole = campaign(PlantedModels())
    whole.run()
    assert whole.campaign.finish() == "complete"
    for verified in (0, 1, 3):
        killed = campaign(PlantedModels())

        def is_reached(fleet: Simulation = killed, count: int = verified) -> bool:
            done = [task for agent in fleet.agents for task in agent.measured if task[2]]
            return bool(fleet.store.evaluations.of_run("run-1")) and len(done) >= count

        killed.run(until=is_reached)
        assert not killed.campaign.finished
        stored = {(each.file_key, each.part) for each in killed.store.evaluations.of_run("run-1")}
        killed.vanish()
        killed.models = fresh = PlantedModels()
        killed.begin(resume=True)
        killed.run()
        assert killed.campaign.finish() == "complete"
        assert winners(killed) == winners(whole)
        assert not stored & set(fresh.evaluated)


def test_evaluation_images_decide_nothing() -> None:
    """Winners are the same with evaluation images, without, and with ones that say the opposite."""

    class Opposite(PlantedModels):
        def accuracy(self, model: CalibratedModel) -> tuple[float, int] | None:
            return 1.0 - planted_accuracy(model.architecture), IMAGES

    ended = []
    for models in (PlantedModels(), PlantedModels(parts=("selection", "evaluation")), Opposite()):
        fleet = campaign(models)
        fleet.run()
        assert fleet.campaign.finish() == "complete"
        ended.append(winners(fleet))
    assert ended[0] == ended[1] == ended[2]


@pytest.mark.parametrize(
    "trouble", [RuntimeUnavailableError("LiteRT is not installed"), UsageError("cat.png cannot be read as an image")]
)
def test_where_nothing_is_evaluated_a_line_says_why_and_the_predictor_chooses(
    trouble: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = campaign(PlantedModels(trouble=trouble), agents=1)
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    said = [line for line in fleet.campaign.log if str(trouble) in line and "candidate" in line]
    assert len(said) == 1
    assert caplog.records == []
    plain = campaign(PlantedModels(), rerank=0, agents=1)
    plain.run()
    plain.campaign.finish()
    assert [winner[:3] for winner in winners(fleet)] == [winner[:3] for winner in winners(plain)]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_large_fleet_plans_at_once_and_still_waits_for_its_candidates(at_once: bool) -> None:
    models = PlantedModels()
    fleet = campaign(models, agents=1)
    fleet.at_once = at_once
    fleet.run()
    assert fleet.campaign.finish() == "complete"
    assert models.evaluated
