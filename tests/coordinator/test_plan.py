"""A plan is typed in memory and text in the store."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rigs.store_examples import run_record

from fleetnas.coordinator.records.plan import CampaignPlan, RunSettings, settings_of
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.errors import StoreError


def stored(**plan: object) -> dict[str, object]:
    settings = RunSettings(
        plan=CampaignPlan(targets=TargetRequest(automatic=2)), supernet_path="/s", design_space="digits", source="test"
    )
    fields = settings.model_dump(mode="json")
    return {**fields, "plan": {**fields["plan"], **plan}}


@pytest.mark.parametrize("text", ["auto:3", "15,20.5", "0.1234567,12.3456789,1234567.5"])
def test_targets_and_strategy_are_stored_as_they_always_were(text: str) -> None:
    plan = CampaignPlan(targets=TargetRequest.parse(text), strategy=Strategy.TOP_DOWN)
    fields = plan.model_dump(mode="json")
    assert (fields["targets"], fields["strategy"]) == (text, "top-down")
    assert CampaignPlan.model_validate(fields) == plan
    assert isinstance(CampaignPlan.model_validate(fields).targets, TargetRequest)


@pytest.mark.parametrize("wrong", [{"targets": "soon"}, {"targets": 3}, {"strategy": "sideways"}])
def test_a_stored_plan_that_cannot_be_read_names_its_run(wrong: dict[str, object]) -> None:
    run = replace(run_record("run-1", 1.0), settings=stored(**wrong))
    with pytest.raises(StoreError, match=f"run run-1 cannot be read .plan.{next(iter(wrong))}"):
        settings_of(run)
