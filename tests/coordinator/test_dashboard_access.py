"""A dashboard is read by those who may, under its own names, and by nobody else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fleetnas.coordinator.dashboard.access import Guard, HostRule, checked_token, is_loopback, new_token
from fleetnas.fleet_protocol.errors import UsageError

TOKEN = "0123456789abcdef-token"


def ask(
    guard: Guard, path: str = "/", query: str = "", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    """One request, answered without a server."""
    named = {"host": "127.0.0.1:8650", **headers}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(guard(scope, receive, send))
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]).decode()


async def _pages(scope: Any, receive: Any, send: Any) -> None:
    del receive
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"page {scope['path']}".encode()})


def guard(token: str | None = None, host: str = "127.0.0.1", names: tuple[str, ...] = (), port: int = 8650) -> Guard:
    return Guard(_pages, HostRule(host, names), token, port, lambda status, text: f"{status}: {text}".encode())


class TestHostNames:
    @pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST", "[::1]", "127.0.0.1:8650", "[::1]:8650"])
    def test_this_machine_is_answered(self, name: str) -> None:
        assert ask(guard(), host=name)[0] == 200

    @pytest.mark.parametrize("name", ["evil.example", "127.0.0.1.evil.example:8650", "192.168.1.5", "", "[fe80::1"])
    def test_another_name_that_leads_here_is_not(self, name: str) -> None:
        status, _, text = ask(guard(), host=name)
        assert status == 421
        assert "--allow-host" in text

    def test_on_the_network_addresses_and_given_names_are_answered_and_others_are_not(self) -> None:
        there = HostRule("0.0.0.0", ("Lab.example",))
        assert there.allows("192.168.1.5:8650")
        assert there.allows("[2001:db8::5]:8650")
        assert there.allows("lab.example:8650")
        assert not there.allows("evil.example")

    def test_loopback_is_told_from_the_network(self) -> None:
        assert [is_loopback(host) for host in ("127.0.0.1", "::1", "[::1]", "localhost", "127.8.8.8")] == [True] * 5
        assert [is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.5", "lab.example")] == [False] * 4


class TestToken:
    def test_without_it_a_page_says_what_to_do_and_shows_nothing(self) -> None:
        status, _, text = ask(guard(TOKEN), "/runs/run-1")
        assert status == 401
        assert "?token=" in text
        assert "page" not in text

    @pytest.mark.parametrize(
        "query", ["token=wrong", "token=", f"token={TOKEN}x", "token=%FF", f"token=x&token={TOKEN}"]
    )
    def test_a_wrong_one_is_refused(self, query: str) -> None:
        status, headers, text = ask(guard(TOKEN), query=query)
        assert status == 403
        assert "set-cookie" not in headers
        assert TOKEN not in text

    def test_the_link_gives_a_cookie_once_and_the_token_leaves_the_address(self) -> None:
        one = guard(TOKEN)
        status, headers, _ = ask(one, "/compare", f"run=a&token={TOKEN}&run=b c")
        assert (status, headers["location"]) == (303, "/compare?run=a&run=b+c")
        cookie, _, attributes = headers["set-cookie"].partition("; ")
        assert set(attributes.split("; ")) == {"Path=/", "HttpOnly", "SameSite=Lax"}
        assert TOKEN not in cookie
        assert ask(one, "/compare", cookie=f"other=1; {cookie}")[2] == "page /compare"

    def test_a_cookie_of_another_token_or_another_dashboard_is_none(self) -> None:
        _, headers, _ = ask(guard("another-token-of-length"), "/", "token=another-token-of-length")
        assert ask(guard(TOKEN), cookie=headers["set-cookie"].partition(";")[0])[0] == 401
        _, headers, _ = ask(guard(TOKEN, port=1), "/", f"token={TOKEN}")
        assert ask(guard(TOKEN, port=2), cookie=headers["set-cookie"].partition(";")[0])[0] == 401
        assert ask(guard(TOKEN), cookie='fleetnas_dashboard_8650="; x=\x00')[0] == 401

    def test_a_link_leads_to_no_other_host(self) -> None:
        assert ask(guard(TOKEN), "//evil.example/", f"token={TOKEN}")[1]["location"] == "/evil.example/"

    def test_the_look_of_the_refusal_needs_no_token(self) -> None:
        assert ask(guard(TOKEN), "/static/1/dashboard.css")[0] == 200

    def test_new_ones_cannot_be_guessed_and_own_ones_are_long_enough(self) -> None:
        assert new_token() != new_token()
        assert len(new_token()) > 40
        assert checked_token(f" {TOKEN}\n", "f") == TOKEN
        for text in ("", "short", "with blanks in the token", "ä" * 20):
            with pytest.raises(UsageError, match="at least 16"):
                checked_token(text, "f")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(method: str) -> None:
    status, headers, _ = ask(guard(), method=method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize("request_of", [{}, {"host": "evil.example"}, {"method": "POST"}])
def test_every_answer_forbids_what_the_pages_do_not_need(request_of: dict[str, str]) -> None:
    _, headers, _ = ask(guard(), **request_of)
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
