"""Whatever standard output is and cannot show: a command does its work, and ends as it would anywhere else."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rigs.event_examples import EVENTS
from rigs.outcome_examples import snapshot
from rigs.simulated_fleet import Simulation

from fleetnas.coordinator.monitoring.view_group import ViewGroup
from fleetnas.coordinator.records.events import event_from_fields
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.coordinator.view.lines import JsonView, LinesView
from fleetnas.coordinator.view.live import LiveView
from fleetnas.device_profiles.plain_text import PRINTABLE, ascii_json

COMMANDS = {
    "fleetnas": "from fleetnas.coordinator.cli import main; main()",
    "fleetnas-agent": "from fleetnas.agent.cli.main import main; main()",
}
#: A container without a locale, and a terminal of another century.
NO_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
DUMB = {"TERM": "dumb", "PYTHONIOENCODING": "ascii", "COLUMNS": "20"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a file whose name ASCII lacks."""
    path = tmp_path_factory.mktemp("store") / "läufe.sqlite"
    fleet = Simulation(CampaignPlan(targets="auto:2", budget=10, initial_design=6), store=MeasurementStore.open(path))
    fleet.add("pi0")
    fleet.begin()
    fleet.run()
    fleet.campaign.finish()
    fleet.store.close()
    return path


def run(program: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([sys.executable, "-c", COMMANDS[program], *arguments], check=False, **options)  # type: ignore[call-overload,no-any-return]


def environment(place: dict[str, str]) -> dict[str, str]:
    bare = {name: value for name, value in os.environ.items() if name not in ("LC_ALL", "LANG", "PYTHONUTF8")}
    return bare | place


def assert_it_is_all_there(said: str) -> None:
    assert "2 of 2 targets met" in " ".join(said.split())
    assert said.count("+ met") == 2  # as ✓ is written where there is none


def test_a_complete_run_is_shown_and_exits_with_0(stored: Path) -> None:
    ended = run("fleetnas", "results", "run-1", "--store", str(stored), capture_output=True, env=environment(NO_LOCALE))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert_it_is_all_there(ended.stdout.decode("ascii"))


def test_so_it_is_on_a_dumb_and_narrow_terminal(stored: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        ended = run(
            "fleetnas", "results", "run-1", "--store", str(stored), stdout=theirs, stderr=theirs, env=environment(DUMB)
        )
        os.close(theirs)
        said = os.read(ours, 100_000).decode("ascii")
    finally:
        os.close(ours)
    assert ended.returncode == 0
    assert_it_is_all_there(said)


def test_an_error_names_what_its_stream_cannot_show() -> None:
    ended = run("fleetnas-agent", "bench", "mödell–5.onnx", capture_output=True, env=environment(DUMB))
    assert ended.returncode == 2
    assert ended.stderr.decode("ascii").startswith("error: there is no model file m?dell-5.onnx")


def test_a_name_that_is_no_text_is_printed(stored: Path, tmp_path: Path) -> None:
    """A byte in a file name that is no UTF-8 cannot be encoded in any stream, UTF-8 included."""
    output = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")
    ended = run("fleetnas", "export-data", "--store", str(stored), "-o", output, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert ended.stdout.startswith(os.fsencode(tmp_path) + b"/?.csv: ")
    assert os.path.getsize(output) > 0


def test_the_agent_tells_all_of_its_device_in_ascii(tmp_path: Path) -> None:
    state = ("--state-dir", str(tmp_path / "stätte"))
    ended = run("fleetnas-agent", "doctor", *state, capture_output=True, env=environment(NO_LOCALE))
    assert b"Traceback" not in ended.stderr
    assert "st??tte" in ended.stdout.decode("ascii")


def test_a_reader_that_goes_away_ends_the_output_without_a_word(stored: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = run("fleetnas", "runs", "--json", "--store", str(stored), stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_full_disk_behind_standard_output_is_told_in_one_line(stored: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = run("fleetnas", "runs", "--store", str(stored), stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    (line,) = ended.stderr.decode().splitlines()
    assert "No space left on device" in line


def test_closed_streams_are_no_reason_to_fail(stored: Path) -> None:
    status = f"status --state-dir '{stored.parent}'"
    for program, arguments in (("fleetnas", f"runs --store '{stored}'"), ("fleetnas-agent", status)):
        command = f'"{sys.executable}" -c "{COMMANDS[program]}" {arguments} >&- 2>&-'
        assert subprocess.run(command, shell=True, check=False).returncode == 0


class TestViews:
    """The search's own views, on streams that cannot show what they say."""

    def stream(self, encoding: str) -> io.TextIOWrapper:
        return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=PRINTABLE, write_through=True)

    def written(self, stream: io.TextIOWrapper) -> str:
        buffer = stream.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(stream.encoding)

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "utf-8"])
    def test_lines_and_frames(self, encoding: str) -> None:
        lines, frames = self.stream(encoding), self.stream(encoding)
        views = [LinesView(lines), LiveView(Console(file=frames, force_terminal=True, width=100, height=40))]
        for width, height in ((0, 0), (1, 1), (20, 3)):
            small = Console(file=self.stream(encoding), force_terminal=True, width=width, height=height)
            views.append(LiveView(small))
        for view in views:
            for event in EVENTS:
                view.event(event)
            view.update(snapshot())
            view.close()
        assert "met" in self.written(lines)
        assert "board-0" in self.written(frames)

    def test_json_says_the_same_in_ascii(self) -> None:
        odd = EVENTS[1].model_copy(update={"model": "Brett № 5 — \N{GRINNING FACE}"})
        stream = self.stream("ascii")
        JsonView(stream).event(odd)
        line = self.written(stream)
        assert event_from_fields(json.loads(line)) == odd
        assert json.loads(ascii_json('{"№": "\N{GRINNING FACE}"}')) == {"№": "\N{GRINNING FACE}"}

    def test_a_view_whose_output_is_gone_leaves_the_run_and_the_other_views_alone(self) -> None:
        class Gone(LinesView):
            def event(self, event: object) -> None:
                raise OSError(5, "Input/output error")

            def close(self) -> None:
                raise OSError(5, "Input/output error")

        kept = io.StringIO()
        full = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
        view_group = ViewGroup([Gone(io.StringIO()), LinesView(full), LinesView(kept)])
        for event in EVENTS:
            view_group.event(event)
        view_group.update(snapshot())
        view_group.close()
        with contextlib.suppress(OSError):  # it has room for nothing still
            full.close()
        alone = io.StringIO()
        view = LinesView(alone)
        for event in EVENTS:
            view.event(event)
        view.update(snapshot())
        view.close()
        assert kept.getvalue() == alone.getvalue()
