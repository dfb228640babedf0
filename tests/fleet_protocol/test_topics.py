import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetnas.fleet_protocol.errors import FleetnasError, ProtocolError, UsageError
from fleetnas.fleet_protocol.topics import (
    DOWN_CHANNELS,
    MAX_PAGES,
    UP_CHANNELS,
    AgentDown,
    AgentUp,
    CoordinatorAnnouncement,
    ForwardedUpdate,
    RunUpdate,
    Topics,
    check_name,
)
from fleetnas.fleet_protocol.transports.base import BrokerAddress

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", fullmatch=True)


@given(fleet=names, agent=names)
def test_every_topic_parses_back_to_what_it_was_built_from(fleet: str, agent: str) -> None:
    topics = Topics(fleet)
    for up in UP_CHANNELS:
        assert topics.parse(topics.up(agent, up)) == AgentUp(agent, up)
    for down in DOWN_CHANNELS:
        assert topics.parse(topics.down(agent, down)) == AgentDown(agent, down)
    assert topics.parse(topics.coordinator) == CoordinatorAnnouncement()
    assert topics.parse(topics.forwarded(agent, "pi")) == ForwardedUpdate(agent, "pi")
    assert topics.parse(topics.run_summary(agent)) == RunUpdate(agent, "summary")
    assert topics.parse(topics.run_events(agent)) == RunUpdate(agent, "events")
    for page in (0, 1, MAX_PAGES - 1):
        assert topics.parse(topics.run_page(agent, page)) == RunUpdate(agent, "page", page)


@given(st.text(max_size=200))
def test_any_other_topic_is_refused_and_nothing_else_happens(topic: str) -> None:
    with pytest.raises(ProtocolError):
        Topics("shelf").parse(topic)


@pytest.mark.parametrize(
    "topic",
    [
        "fleetnas/v1/other/agents/pi/up/state",
        "fleetnas/v1/shelf/agents/a/b/up/state",
        "fleetnas/v1/shelf/coordinator/runs/r/page-01",
        "fleetnas/v1/shelf/coordinator/runs/r/page-10000",
        "fleetnas/v1/shelf/coordinator/runs/r/s/events",
        "fleetnas/v1/shelf/forwarded/r",
        "fleetnas/v1/shelf/forwarded/r/+",
    ],
)
def test_a_topic_of_another_fleet_or_depth_is_refused(topic: str) -> None:
    with pytest.raises(ProtocolError):
        Topics("shelf").parse(topic)


@pytest.mark.parametrize("name", ["", "a/b", "+", "#", "a b", "é", "x" * 65, "-x", "a\n"])
def test_a_name_that_would_break_a_topic_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        check_name(name, "agent name")


def test_topics_fit_brokers_that_allow_seven_slashes() -> None:
    topics = Topics("f")
    assert max(topics.up("a", c).count("/") for c in UP_CHANNELS) <= 7
    assert topics.run_page("r", 0).count("/") <= 7
    assert topics.forwarded("r", "a").count("/") <= 7


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("pi.local", "pi.local", 1883),
        ("10.0.0.1:1884", "10.0.0.1", 1884),
        ("[::1]:9", "::1", 9),
        ("[::1]", "::1", 1883),
    ],
)
def test_broker_addresses(text: str, host: str, port: int) -> None:
    address = BrokerAddress.parse(text)
    assert (address.host, address.port) == (host, port)


@pytest.mark.parametrize("text", ["", ":1883", "host:", "host:0", "host:65536", "host:mqtt"])
def test_a_bad_broker_address_says_what_is_wanted(text: str) -> None:
    with pytest.raises(FleetnasError, match="HOST:PORT"):
        BrokerAddress.parse(text)
