"""`--targets-file`: targets and bounds of single devices, and one clear line for what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rigs.command_line import fleetnas
from rigs.simulated_fleet import SPACE, Simulation
from rigs.store_examples import INFO

from fleetnas.coordinator.app.dry_run import asked_of, stand_in
from fleetnas.coordinator.cli.search.targets_file import read_targets_file
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.device_targets import DeviceTargets
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.targets import TargetRequest
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import RuntimeSetting

TOML = """
["pi4-*"]
targets = "20,p95:33"
max_macs = "300M"

["tag:camera"]
targets = [30, "fps:30"]

[jetson]
accuracy_floor = 75
minimise = "energy"
"""


def write(folder: Path, text: str, name: str = "targets.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    found = read_targets_file(write(tmp_path, TOML))
    document = {
        "pi4-*": {"targets": "20,p95:33", "max_macs": "300M"},
        "tag:camera": [30, "fps:30"],
        "jetson": {"accuracy_floor": 75, "minimise": "energy"},
    }
    assert read_targets_file(write(tmp_path, json.dumps(document), "targets.json")) == found
    assert [(entry.device, str(entry.targets), entry.bounds) for entry in found] == [
        ("pi4-*", "20,p95:33", Bounds(macs=3e8)),
        ("tag:camera", "30,fps:30", Bounds()),
        ("jetson", "accuracy:75:energy", Bounds()),
    ]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.toml", "", "names no device"),
        ("t.toml", "[pi4]\ntargets = '20'\n[pi4]\ntargets = '30'\n", "twice"),
        ("t.json", '{"pi4": "20", "pi4": "30"}', "'pi4' twice"),
        ("t.toml", "[pi4]\ntargets = '20'\ncolour = 3\n", "unknown field 'colour'; it takes targets"),
        ("t.toml", "[pi4]\ntarget = '20'\n", "unknown field 'target'; did you mean targets? it takes targets"),
        ("t.json", '{"pi4": {"max_mac": "20"}}', "unknown field 'max_mac'; did you mean max_macs? it takes"),
        ("t.toml", "[pi4]\ntargets = 'p20:3'\n", "'pi4': targets 'p20:3' cannot be used"),
        ("t.toml", "[pi4]\nmax_macs = '300M'\n", "asks for nothing"),
        ("t.toml", "[pi4]\nminimise = 'energy'\n", "accuracy_floor; add that"),
        ("t.toml", "[pi4]\naccuracy_floor = 120\n", "between 0 and 100"),
        ("t.toml", "[pi4]\naccuracy_floor = 'high'\n", "is no number"),
        ("t.toml", "[pi4]\naccuracy_floor = true\n", "accuracy_floor True is no number"),
        ("t.toml", "[pi4.hall]\ntargets = '20'\n", 'a name with a dot takes quotes: ["pi4.hall"]'),
        ("t.toml", "[pi4]\ntargets = '20'\nmax_macs = 'many'\n", "'pi4': --max-macs 'many' is no quantity"),
        ("t.toml", "[pi4\n", "is not TOML"),
        ("t.json", "[1]", "is no JSON object"),
        ("t.json", "{", "is not JSON"),
        ("t.json", '{"": "20"}', "is no device"),
        ("t.json", '{"pi4": null}', "has no table of fields"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_the_device_and_the_value(
    tmp_path: Path, name: str, text: str, words: str
) -> None:
    with pytest.raises(UsageError) as refused:
        read_targets_file(write(tmp_path, text, name))
    assert words in str(refused.value)
    assert "--targets-file" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_line_refuses_bad_input_before_it_has_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = ("search", "--broker", "127.0.0.1", "--supernet", "none.supernet", "--store", str(tmp_path / "s.sqlite"))
    twice = write(tmp_path, '{"pi4": "20", "pi4": "30"}', "t.json")
    for arguments, words in (
        (("--targets-file", str(twice)), "twice"),
        (("--targets-file", "nowhere.toml"), "cannot be read"),
        (("--accuracy-floor", "0"), "between 0 and 100"),
        (("--accuracy-floor", "75", "--minimise", "time"), "--minimise"),
        ((), "--accuracy-floor or --targets-file"),
    ):
        code, out, err = fleetnas(capsys, *begun, *arguments)
        assert (code, out) == (2, "")
        assert words in err
        assert "Traceback" not in err
    assert not (tmp_path / "s.sqlite").exists()


def entries(**targets: str) -> tuple[DeviceTargets, ...]:
    return tuple(DeviceTargets(device=name, targets=TargetRequest.parse(text)) for name, text in targets.items())


def test_each_device_searches_its_own_targets_and_views_count_them() -> None:
    plan = CampaignPlan(targets="5", budget=12, initial_design=6, wait_for=2, device_targets=entries(pi4="4,8"))
    made = Simulation(plan, search_rounds=2)
    made.add("pi4", seed=1)
    made.add("pi5", seed=2)
    made.begin()
    made.run()
    found = {device.device: device for device in made.campaign.snapshot(made.clock.unix()).devices}
    assert [target.target_ms for target in found["pi4"].targets] == [4.0, 8.0]
    assert [target.target_ms for target in found["pi5"].targets] == [5.0]
    assert (found["pi4"].targets_asked, found["pi5"].targets_asked) == (2, 1)


def test_an_entry_that_no_device_matches_ends_the_campaign_before_measuring() -> None:
    made = Simulation(CampaignPlan(targets="5", budget=12, device_targets=entries(pi44="4")))
    agent = made.add("pi4")
    made.begin()
    with pytest.raises(UsageError, match=r"--targets-file: pi44 names no agent .*mean pi4.*there are pi4"):
        made.run()
    assert not agent.measured


def test_a_dry_run_refuses_the_settings_that_a_search_refuses() -> None:
    plan = CampaignPlan(
        targets=TargetRequest(), budget=12, device_targets=entries(pi4="4,energy:5mJ", pi5="energy:5mJ")
    )
    make, setting = stand_in(SPACE, plan), RuntimeSetting()
    told = {name: INFO.model_copy(update={"agent": name, "tells_energy": False}) for name in ("pi4", "pi5", "pi6")}
    make(told["pi4"], setting)
    assert asked_of(plan, told["pi4"], setting) == 1
    for name, words in (("pi5", "pi5 tells no energy"), ("pi6", "no target is asked for on it")):
        with pytest.raises(UsageError, match=words):
            make(told[name], setting)
