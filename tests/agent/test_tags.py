"""Tags of an agent: read from command line, environment and file, announced, and understood by older programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fleetnas.agent.cli.installation.layout import Installation
from fleetnas.agent.cli.installation.service import install
from fleetnas.agent.cli.main import parse_options
from fleetnas.agent.cli.tags import chosen_tags, parse_tags
from fleetnas.agent.host.host_mark import host_mark
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.codec import decode, encode
from fleetnas.fleet_protocol.errors import ProtocolError, UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, RuntimeSetting

PROFILE = DeviceProfile(model="Raspberry Pi 4", machine="aarch64", cores=4)


def tags_of(tmp_path: Path, *arguments: str, configured: str = "") -> tuple[str, ...]:
    file = tmp_path / "agent.conf"
    file.write_text(f"[agent]\nbroker = here\n{configured}\n")
    options = parse_options(["run", "--config", str(file), *arguments])
    return chosen_tags(options.tag, options.configured_tags)


def test_tags_of_the_command_line_replace_configured_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEETNAS_TAGS", raising=False)
    assert tags_of(tmp_path) == ()
    assert tags_of(tmp_path, configured="tags = camera, pi4") == ("camera", "pi4")
    assert tags_of(tmp_path, "--tag", "lamp", "--tag", "lamp", configured="tags = camera") == ("lamp",)
    monkeypatch.setenv("FLEETNAS_TAGS", "class:pi4;hall")
    assert tags_of(tmp_path, configured="tags = camera") == ("class:pi4", "hall")


@pytest.mark.parametrize("tag", ["two words", "-x", "a*", "x" * 65, "straße"])
def test_what_can_be_no_tag_is_refused_with_an_example(tag: str) -> None:
    with pytest.raises(UsageError, match=r"is no tag.*give one such as camera or class:pi4"):
        parse_tags([tag])


def test_more_tags_than_an_announcement_holds_are_refused() -> None:
    assert len(parse_tags([",".join(f"t{place}" for place in range(16))])) == 16
    with pytest.raises(UsageError, match="at most 16 tags, and 17 are given"):
        parse_tags([",".join(f"t{place}" for place in range(17))])


def test_an_installed_service_keeps_its_tags(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    install(installation, {"broker": "here", "tags": "camera, class:pi4"}, start=False, run=lambda *_: None)
    options = parse_options(["run", "--config", str(installation.configuration)])
    assert chosen_tags(options.tag, options.configured_tags) == ("camera", "class:pi4")
    with pytest.raises(UsageError, match="is no tag"):
        install(Installation(tmp_path / "x"), {"broker": "here", "tags": "a b"}, start=False, run=lambda *_: None)


def test_tags_cross_the_wire_and_are_left_out_where_there_are_none() -> None:
    info = AgentInfo(agent="pi", session=1, profile=PROFILE, settings=(RuntimeSetting(),), versions={})
    assert not {"tags", "host"} & set(json.loads(encode(info)))
    tagged = info.model_copy(update={"tags": ("camera", "class:pi4"), "host": "0123456789abcdef"})
    found = decode(AgentInfo, encode(tagged))
    assert (found.tags, found.host) == (("camera", "class:pi4"), "0123456789abcdef")


@pytest.mark.parametrize("fields", [{"tags": ["a b"]}, {"tags": ["x"] * 17}, {"host": "mine"}])
def test_tags_beyond_their_bounds_are_refused(fields: dict[str, object]) -> None:
    info = AgentInfo(agent="pi", session=1, profile=PROFILE, settings=(RuntimeSetting(),), versions={})
    with pytest.raises(ProtocolError):
        decode(AgentInfo, json.dumps({**json.loads(encode(info)), **fields}).encode())


def test_agents_of_one_machine_have_the_same_mark_until_it_restarts(tmp_path: Path) -> None:
    drawn = tmp_path / "proc/sys/kernel/random/boot_id"
    drawn.parent.mkdir(parents=True)
    marks = []
    for number in ("1b4e28ba", "1b4e28ba", "6fa459ea"):
        drawn.write_text(f"{number}-2fa1-11d2-883f-0016d3cca427\n")
        marks.append(host_mark(tmp_path))
    assert marks[0] == marks[1] != marks[2]
    assert len(marks[0]) == 16
    assert number not in "".join(marks)
    assert host_mark(tmp_path / "nowhere") == ""
