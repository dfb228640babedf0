"""Composing a search: what is read before it, and what is told before there is a campaign."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import pytest
from rigs.simulated_fleet import StandInModels
from rigs.untrained_supernet import write_untrained

from fleetnas.coordinator.app.compose import Notes, open_search
from fleetnas.coordinator.app.request import FleetAccess, ImageFolders, NewRun, SearchRequest
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import LinesView
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.transports.base import BrokerAddress


def request_with_images(supernet: Path, images: Path) -> SearchRequest:
    nobody = FleetAccess(BrokerAddress("127.0.0.1", 1))
    return SearchRequest("", nobody, NewRun(supernet, CampaignPlan(targets="auto:2")), images=ImageFolders(images))


def test_images_are_read_only_where_the_bundle_builds_the_files(tmp_path: Path) -> None:
    request = request_with_images(write_untrained(tmp_path / "s.supernet"), tmp_path / "no-images")
    store = MeasurementStore.open("sqlite://")
    view = functools.partial(LinesView, io.StringIO())
    with pytest.raises(UsageError, match="no-images"):
        open_search(request, view, store)
    assert store.runs() == []
    open_search(request, view, store, StandInModels()).close()


def test_notes_made_before_there_is_a_campaign_reach_it_in_order() -> None:
    notes, log = Notes(), []
    notes.add("first")
    notes.forward(log.append)
    notes.add("second")
    assert log == ["first", "second"]
