"""`fleetnas dashboard` as a process: it answers, keeps its token, and ends in good order; faults are one line."""

from __future__ import annotations

import json
import signal
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from rigs import brokers, waiting
from rigs.command_line import fleetnas
from rigs.dashboards import Dashboard, dashboard
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.dashboard.curve_process import CurveProcess
from fleetnas.coordinator.dashboard.server import listen, serve
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.fleet_protocol.errors import FleetnasError, UsageError

TOKEN = "a-token-of-the-users-own"
LABEL = "onnxruntime_cpu_1t_fp32"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run that has ended; tests only read."""
    file = tmp_path_factory.mktemp("store") / "runs.sqlite"
    opened = MeasurementStore.open(file)
    fleet = Simulation(CampaignPlan(targets="auto:2", budget=8, initial_design=6, wait_for=1, grace_s=5), store=opened)
    fleet.add("pi0")
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    opened.close()
    return file


@pytest.fixture(scope="module")
def served(store: Path) -> Iterator[Dashboard]:
    with dashboard(store) as running:
        yield running


class TestAnswers:
    @pytest.mark.parametrize(
        "path", ["/", "/runs/run-1", f"/runs/run-1/devices/pi0/{LABEL}", "/compare", "/compare?run=run-1&run=run-1"]
    )
    def test_every_page_is_whole_and_renewed_by_its_parts(self, served: Dashboard, path: str) -> None:
        page = served.get(path)
        assert page.status == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.body.startswith("<!doctype html>")
        assert page.body.rstrip().endswith("</html>")
        ask = {"Accept": "application/json", "If-None-Match": page.headers["etag"]}
        assert served.get(path, ask).status == 304
        other = json.loads(served.get(path, {"Accept": "application/json", "If-None-Match": '"x"'}).body)
        assert other["etag"] == page.headers["etag"]
        assert all(part["html"] in page.body for part in other["parts"])

    def test_static_files_are_kept_and_what_they_are(self, served: Dashboard) -> None:
        page = served.get("/").body
        for kind in ("css", "js", "svg"):
            address = next(word for word in page.split('"') if word.startswith("/static/") and word.endswith(kind))
            answer = served.get(address)
            assert answer.status == 200
            assert "immutable" in answer.headers["cache-control"]
            assert "http" not in answer.body.replace("http://www.w3.org/2000/svg", "")

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("/runs/run-9", "holds no run &#39;run-9&#39;; the latest are run-1"),
            ("/runs/run-1/devices/pi9/x", f"it has pi0/{LABEL}"),
            ("/runs/run-1/portfolio/x", "There is no page"),
            ("/nothing", "There is no page"),
            ("/static/0/../../secret", "There is no page"),
        ],
    )
    def test_what_is_not_there_is_a_page_that_says_what_to_do(self, served: Dashboard, path: str, words: str) -> None:
        answer = served.get(path)
        assert answer.status == 404
        assert words in answer.body
        assert 'href="/"' in answer.body

    def test_an_open_page_of_a_run_that_is_gone_is_told_why(self, served: Dashboard) -> None:
        answer = served.get("/runs/run-9", {"Accept": "application/json"})
        assert answer.status == 404
        assert "holds no run" in json.loads(answer.body)["error"]

    def test_another_host_name_and_another_method_are_refused(self, served: Dashboard) -> None:
        assert served.get("/", {"Host": "evil.example"}).status == 421
        assert served.get("/", method="POST").status == 405
        assert "default-src 'none'" in served.get("/").headers["content-security-policy"]

    def test_the_curve_of_a_bundle_that_is_gone_says_so(self, served: Dashboard) -> None:
        def failed() -> str:
            body = served.get("/runs/run-1/portfolio").body
            return "" if "being computed" in body else body

        assert "digits.supernet" in waiting.until(failed, served.process, what="the curve")


class TestToken:
    def test_it_is_asked_for_kept_as_a_cookie_and_written_nowhere(self, store: Path, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text(f"{TOKEN}\n")
        with dashboard(store, "--token-file", str(file)) as running:
            assert running.link.endswith(f"?token={TOKEN}")
            assert running.get("/runs/run-1").status == 401
            assert running.get("/?token=wrong").status == 403
            answer = running.get(f"/runs/run-1?token={TOKEN}")
            assert (answer.status, answer.headers["location"]) == (303, "/runs/run-1")
            cookie = answer.headers["set-cookie"].partition(";")[0]
            assert running.get("/runs/run-1", {"Cookie": cookie}).status == 200
            running.process.send_signal(signal.SIGINT)
            out, err = running.process.communicate()
            assert (running.process.returncode, out, err) == (0, "", "")

    def test_beyond_this_machine_there_is_always_one(self, store: Path) -> None:
        with dashboard(store, "--host", "0.0.0.0") as running:
            assert "?token=" in running.link
            assert running.get("/").status == 401
            assert any("not encrypted" in line for line in running.lines)


class TestEnd:
    @pytest.mark.parametrize("wanted", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_it_in_good_order(self, store: Path, wanted: signal.Signals) -> None:
        with dashboard(store) as running:
            assert running.get("/").status == 200
            running.process.send_signal(wanted)
            out, err = running.process.communicate()
        assert (running.process.returncode, out, err) == (0, "", "")

    @pytest.mark.parametrize("wanted", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_as_soon_as_the_link_is_printed_ends_it(self, wanted: signal.Signals) -> None:
        """The link comes first: nobody may be too quick for the server."""

        async def never_asked(scope: object, receive: object, send: object) -> None:
            raise AssertionError

        before = signal.getsignal(wanted)
        listener = listen("127.0.0.1", 0)
        serve(never_asked, listener, lambda: signal.raise_signal(wanted))
        assert listener.fileno() == -1
        assert signal.getsignal(wanted) == before


class TestFaults:
    def test_a_store_that_is_not_there(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        code, _, err = fleetnas(capsys, "dashboard", "--store", str(tmp_path / "nothing.sqlite"))
        assert code == 2
        assert err.startswith("error: there is no store")
        assert err.count("\n") == 1

    def test_a_file_that_is_no_store(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "text").write_text("no store at all, but long enough to be read as one " * 40)
        code, _, err = fleetnas(capsys, "dashboard", "--store", str(tmp_path / "text"))
        assert code == 1
        assert "it is no fleetnas store" in err

    def test_a_port_in_use(self, capsys: pytest.CaptureFixture[str], store: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            code, out, err = fleetnas(capsys, "dashboard", "--store", str(store), "--port", str(port))
        assert (code, out) == (2, "")
        assert f"127.0.0.1:{port} is in use" in err
        assert "--port" in err

    @pytest.mark.parametrize("host", ["203.0.113.7", "a..b"])
    def test_an_address_of_another_machine(self, capsys: pytest.CaptureFixture[str], store: Path, host: str) -> None:
        code, _, err = fleetnas(capsys, "dashboard", "--store", str(store), "--host", host, "--port", "0")
        assert code == 2
        assert f"--host {host} is no address of this machine" in err

    def test_a_token_file_that_holds_none(
        self, capsys: pytest.CaptureFixture[str], store: Path, tmp_path: Path
    ) -> None:
        for content in (None, b"", b"short", b"\xff\xfe"):
            file = tmp_path / "token"
            if content is not None:
                file.write_bytes(content)
            code, _, err = fleetnas(capsys, "dashboard", "--store", str(store), "--token-file", str(file))
            assert code == 2, err
            assert str(file) in err

    def test_a_broker_that_does_not_answer(self, capsys: pytest.CaptureFixture[str], store: Path) -> None:
        port = brokers.free_port()
        arguments = ("--store", str(store), "--port", "0", "--broker", f"127.0.0.1:{port}")
        code, _, err = fleetnas(capsys, "dashboard", *arguments)
        assert code == 1
        assert str(port) in err

    def test_options_of_a_broker_without_one(self, capsys: pytest.CaptureFixture[str], store: Path) -> None:
        code, _, err = fleetnas(capsys, "dashboard", "--store", str(store), "--fleet", "lab")
        assert code == 2
        assert "leave out --fleet" in err

    def test_a_store_that_is_damaged_while_it_is_shown(self, tmp_path: Path) -> None:
        file = tmp_path / "runs.sqlite"
        MeasurementStore.open(file).close()
        with dashboard(file) as running:
            assert running.get("/").status == 200
            with sqlite3.connect(file) as connection:
                connection.execute("DROP TABLE runs")
            answer = running.get("/")
            assert answer.status == 503
            assert "a table of it is missing: restore it from a copy" in answer.body


class TestCurveProcess:
    def test_values_and_errors_come_back(self) -> None:
        process = CurveProcess()
        try:
            assert process.submit(len, "four").result() == 4
            with pytest.raises(FleetnasError, match="ZeroDivisionError"):
                process.submit(divmod, 1, 0).result()
            with pytest.raises(FleetnasError, match="ended with code 3"):
                process.submit(exit_with, 3).result()
        finally:
            process.close()

    def test_closing_ends_what_runs(self) -> None:
        process = CurveProcess()
        running, waiting_one = process.submit(wait_for_ever), process.submit(len, "x")
        waiting.until(running.running, what="the process")
        process.close()
        assert running.exception() is not None
        assert waiting_one.cancelled() or waiting_one.exception() is not None


def exit_with(code: int) -> None:
    import os

    os._exit(code)


def wait_for_ever() -> None:
    signal.pause()


def test_a_curve_needs_a_search_whose_bundle_is_there(store: Path) -> None:
    from fleetnas.coordinator.app.portfolio_curve import stored_curve

    with pytest.raises(UsageError, match="holds no run"):
        stored_curve(str(store), "run-9")
    with pytest.raises(FleetnasError, match=r"digits\.supernet"):
        stored_curve(str(store), "run-1")
