"""The command line: what it prints, its exit codes, and its answers to what cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from rigs import brokers, waiting
from rigs.command_line import fleetnas
from rigs.simulated_fleet import Simulation
from rigs.striped_images import write_supernet
from rigs.supernets import random_state_dict
from safetensors.numpy import save_file

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.cli.bounds import BoundOptions
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.plan import CampaignPlan
from fleetnas.coordinator.records.strategy import Strategy
from fleetnas.coordinator.report.stored_outcome import outcome_of
from fleetnas.coordinator.search.offline import OfflineRequest
from fleetnas.coordinator.store.store import MeasurementStore
from fleetnas.device_profiles.profile import DeviceProfile
from fleetnas.fleet_protocol.codec import encode
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.messages import AgentInfo, AgentState, RuntimeSetting
from fleetnas.fleet_protocol.topics import Topics
from fleetnas.fleet_protocol.transports.mqtt import MqttTransport
from fleetnas.supernet_export.accuracy.model import AccuracyPredictor
from fleetnas.supernet_export.bundle import SupernetBundle
from fleetnas.supernet_export.checkpoints.download import PublishedFile
from fleetnas.supernet_export.checkpoints.published import PUBLISHED, PublishedSupernet
from fleetnas.supernet_export.export import export_digits, file_sha256
from fleetnas.supernet_export.spaces.digits import DigitsSpace
from fleetnas.supernet_export.spaces.ofa_proxyless import OfaProxylessSpace
from fleetnas.supernet_export.spaces.registry import make_space


def test_every_command_is_described_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = fleetnas(capsys, "--help")
    assert code == 0
    listed = re.findall(r"^  [a-z-]+ {2,}\S.*$", out.partition("Try it:\n")[2], re.MULTILINE)
    assert len(listed) > 20
    assert [line for line in listed if not line.endswith(".") or line.endswith("...")] == []


def test_a_supernet_without_a_predictor_names_the_commands_that_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_supernet(tmp_path / "s.supernet")
    local = ["--local", "--state-dir", str(tmp_path / "state"), "--store", str(tmp_path / "store.sqlite")]
    search = ["search", "--supernet", str(tmp_path / "s.supernet"), "--targets", "5", *local]
    code, _, err = fleetnas(capsys, *search, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "make one with `fleetnas accuracy evaluate` and `fleetnas accuracy fit --bundle`" in err


class TestStoredRuns:
    def test_runs_lists_them(self, capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
        code, out, _ = fleetnas(capsys, "runs", "--store", str(finished_run), "--json")
        assert code == 0
        found = json.loads(out)
        assert (found["run_id"], found["status"], found["targets"]) == ("run-1", "partial", "auto:2")
        assert (found["met"], found["asked"]) == (2, 4)

    def test_results_shows_who_met_what_and_who_was_lost(
        self, capsys: pytest.CaptureFixture[str], finished_run: Path
    ) -> None:
        code, out, _ = fleetnas(capsys, "results", "run-1", "--store", str(finished_run))
        assert code == 0
        assert "pi0" in out
        assert "2 of 4 targets met" in out
        assert "lost" in out

    def test_an_unknown_run_is_answered_with_the_known_ones(
        self, capsys: pytest.CaptureFixture[str], finished_run: Path
    ) -> None:
        code, _, err = fleetnas(capsys, "results", "run-7", "--store", str(finished_run))
        assert code == 2
        assert "run-1" in err

    def test_the_outcome_holds_every_measurement_with_what_was_foretold(self, finished_run: Path) -> None:
        store = MeasurementStore.open(finished_run)
        outcome = outcome_of(store, "run-1")
        stored = store.outcomes("run-1")
        store.close()
        assert sum(len(device.rows) + len(device.failures) for device in outcome.devices) == len(stored)
        (done, lost) = outcome.devices
        assert (done.status, lost.status) == ("finished", "lost")
        assert all(row.predicted_ms is not None and row.predicted_accuracy is not None for row in done.rows)
        assert done.predictor is not None
        assert [target.met for target in done.targets] == [True, True]
        assert all(target.accuracy_images == 600 for target in done.targets)

    def test_nothing_to_resume_says_where_to_look(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        # `--resume` may stand alone, before another option or at the end.
        nowhere = f"127.0.0.1:{brokers.free_port()}"
        for order in (["--resume", "--broker", nowhere], ["--broker", nowhere, "--resume"]):
            code, _, err = fleetnas(capsys, "search", "--store", str(tmp_path / "runs.sqlite"), *order)
            assert code == 2
            assert "fleetnas runs" in err


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--targets", "auto:4"], "--broker"),
            (["--broker", "127.0.0.1"], "--targets"),
            (["--broker", "127.0.0.1:0", "--targets", "auto:4"], "HOST:PORT"),
            (["--broker", "127.0.0.1", "--targets", "soon"], "auto:4"),
            (["--broker", "127.0.0.1", "--targets", "auto:4"], "--supernet"),
            (["--broker", "127.0.0.1", "--targets", "1", "--supernet", "/nowhere.supernet"], "/nowhere.supernet"),
        ],
    )
    def test_a_search_that_cannot_be_is_refused_in_one_message(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        code, out, err = fleetnas(capsys, "search", "--store", str(tmp_path / "runs.sqlite"), *arguments)
        assert code in (1, 2)
        assert words in err
        assert "Traceback" not in err
        assert out == ""

    def test_an_offline_search_needs_its_tables(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = fleetnas(capsys, "search", "--offline", "--targets", "20")
        assert (code, out, "--latency-table" in err) == (2, "", True)

    @pytest.mark.parametrize("engine", ["guided", "evolution"])
    def test_an_offline_search_has_the_engine_that_was_asked_for(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
    ) -> None:
        asked: list[OfflineRequest] = []

        def search(request: OfflineRequest) -> None:
            asked.append(request)
            raise UsageError("asked")

        monkeypatch.setattr("fleetnas.coordinator.search.offline.search_offline", search)
        files = ("--latency-table", "table.yaml", "--accuracy", "accuracy.pth", "--out", str(tmp_path))
        chosen = ("--engine", engine, "--strategy", "top-down")
        code, _, err = fleetnas(capsys, "search", "--offline", "--targets", "20,15ms", *files, *chosen)
        assert (code, "asked" in err) == (2, True)
        (request,) = asked
        assert (request.engine.name, request.strategy) == (engine, Strategy.TOP_DOWN)
        assert request.targets_ms == (15.0, 20.0)

    def test_a_store_that_is_none_is_refused(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("not a store " * 100)
        code, _, err = fleetnas(capsys, "runs", "--store", str(tmp_path / "notes.txt"))
        assert code == 1
        assert "notes.txt" in err

    @pytest.mark.parametrize("command", [("runs",), ("results", "run-1"), ("export-data", "-o", "all.csv")])
    def test_reading_makes_no_store(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: tuple[str, ...]
    ) -> None:
        code, _, err = fleetnas(capsys, *command, "--store", str(tmp_path / "typing-error" / "runs.sqlite"))
        assert code == 2
        assert "there is no store" in err
        assert not (tmp_path / "typing-error").exists()


class TestBounds:
    def test_units_are_read(self) -> None:
        read = BoundOptions("4M", "300 m", "8MiB", "20mb").bounds()
        assert read == Bounds(parameters=4e6, macs=300e6, peak_activation_bytes=8 * 2**20, model_bytes=20e6)
        assert BoundOptions("3e6", "0.5G", "4096").bounds() == Bounds(3e6, 5e8, 4096.0)
        assert BoundOptions().bounds() == Bounds()

    @pytest.mark.parametrize(
        ("option", "text", "words"),
        [
            ("--max-macs", "300MB", "units k, M, G,"),
            ("--max-parameters", "many", "no quantity above 0"),
            ("--max-file-size", "20M", "B, kB, MB, GB, KiB, MiB, GiB"),
            ("--max-activation-memory", "0", "no quantity above 0"),
            ("--max-activation-memory", "-5MB", "no quantity above 0"),
            ("--max-file-size", "8,5MB", "no quantity above 0"),
        ],
    )
    def test_what_is_no_quantity_is_refused_with_its_option(
        self, capsys: pytest.CaptureFixture[str], option: str, text: str, words: str
    ) -> None:
        code, _, err = fleetnas(capsys, "search", "--targets", "auto:2", f"{option}={text}")
        assert code == 2
        assert option in err
        assert words in err

    def test_bounds_that_no_subnet_keeps_are_refused_before_anything_is_asked(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        bundle = tmp_path / "digits.supernet"
        export_digits(bundle)
        nowhere = f"127.0.0.1:{brokers.free_port()}"
        started = ["search", "--broker", nowhere, "--store", str(tmp_path / "runs.sqlite"), "--targets", "auto:2"]
        code, _, err = fleetnas(capsys, *started, "--supernet", str(bundle), "--max-parameters", "100k")
        assert code == 2
        assert "100,000 parameters, and the smallest subnet has 204,010" in err
        code, out, _ = fleetnas(capsys, "runs", "--store", str(tmp_path / "runs.sqlite"), "--json")
        assert (code, out) == (0, "")

    def test_a_resumed_run_takes_no_others(self, capsys: pytest.CaptureFixture[str], finished_run: Path) -> None:
        nowhere = f"127.0.0.1:{brokers.free_port()}"
        resumed = ["search", "--broker", nowhere, "--store", str(finished_run), "--resume", "run-1"]
        code, _, err = fleetnas(capsys, *resumed, "--max-macs", "3M")
        assert code == 2
        assert "a resumed run keeps what it began with; leave out --max-macs" in err


def test_evaluated_subnets_become_an_accuracy_predictor(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    bundle, evaluated = tmp_path / "digits.supernet", tmp_path / "evaluated.jsonl"
    export_digits(bundle)
    code, out, _ = fleetnas(capsys, "evaluate", str(bundle), "random:1", "--json")
    assert code == 0
    found = json.loads(out)
    # What it prints can be given back.
    code, again, _ = fleetnas(capsys, "evaluate", str(bundle), json.dumps(found["architecture"]), "--json")
    assert json.loads(again)["sha256"] == found["sha256"]
    # The other evaluations are those that the built-in predictor predicts, to save the time.
    space = DigitsSpace()
    genomes = space.sample(60, np.random.default_rng(0))
    predictor = SupernetBundle.open(bundle).accuracy_predictor()
    assert predictor is not None
    lines = [out.strip()]
    for architecture, top1 in zip(space.decode(genomes), predictor.predict(space.one_hot(genomes)), strict=True):
        lines.append(json.dumps({"architecture": architecture.model_dump(mode="json"), "accuracy": float(top1)}))
    evaluated.write_text("\n".join(lines))
    code, out, _ = fleetnas(
        capsys, "accuracy", "fit", str(evaluated), "--space", "digits", "-o", str(tmp_path / "own.safetensors")
    )
    assert code == 0
    assert "on 61 held-out subnets, by fits to 48 others: rank correlation" in out
    assert "root-mean-square error" in out
    assert AccuracyPredictor.load(tmp_path / "own.safetensors").held_out is not None
    # A line says which supernet it is of.
    evaluated.write_text("\n".join([*lines, json.dumps(found | {"supernet_digest": "b" * 64})]))
    for where in (["--bundle", str(bundle)], ["--space", "digits", "-o", str(tmp_path / "own.safetensors")]):
        code, _, err = fleetnas(capsys, "accuracy", "fit", str(evaluated), *where)
        assert code == 2
        assert "line 62 is a subnet of another supernet" in err
    fit = ["accuracy", "fit", str(evaluated), "--space", "digits", "-o", str(tmp_path / "x.safetensors")]
    code, _, err = fleetnas(capsys, *fit, "--options", "{")
    assert code == 2
    assert "--options '{' is not JSON" in err


class TestExport:
    def test_the_built_in_supernet_by_name(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        code, out, _ = fleetnas(capsys, "export", "digits")
        assert code == 0
        bundle = SupernetBundle.open(tmp_path / "digits.supernet")
        assert bundle.sha256 in out
        assert bundle.space.name == "digits"

    def test_a_published_one_by_name(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Downloaded before: what is in the cache and is what was published is not asked for again.
        cached = tmp_path / "cache" / "weights.safetensors"
        cached.parent.mkdir()
        save_file(random_state_dict(OfaProxylessSpace()), cached)
        file = PublishedFile(cached.name, "http://127.0.0.1:1/weights", None, "sha256", file_sha256(cached))
        monkeypatch.setitem(PUBLISHED, "ofa-proxyless-w1.3", PublishedSupernet(file, "ofa-proxyless"))
        output = tmp_path / "found.supernet"
        code, out, err = fleetnas(
            capsys, "export", "ofa-proxyless-w1.3", "-o", str(output), "--cache", str(cached.parent)
        )
        assert (code, err) == (0, "")
        assert SupernetBundle.open(output).sha256 in out

    def test_a_checkpoint_with_its_space(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        space = make_space("ofa-mbv3", {"width": 1.2})
        checkpoint, output = tmp_path / "mine.safetensors", tmp_path / "mine.supernet"
        save_file(random_state_dict(space), checkpoint)
        arguments = ["export", str(checkpoint), "-o", str(output), "--space", "ofa-mbv3"]
        code, _, err = fleetnas(capsys, *arguments)
        assert code == 1
        assert "not of ofa-mbv3 with these options" in err
        assert not output.exists()
        code, _, _ = fleetnas(capsys, *arguments, "--options", '{"width": 1.2}')
        assert code == 0
        assert SupernetBundle.open(output).manifest.options["width"] == 1.2

    def test_a_source_that_is_nothing_is_told_all_that_it_could_be(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        code, _, err = fleetnas(capsys, "export", "ofa-mbv3", "-o", str(tmp_path / "x.supernet"))
        assert code == 2
        assert err.count("error:") == 1
        for word in ("digits", *PUBLISHED, "path of a checkpoint", "--space"):
            assert word in err

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["digits", "--space", "ofa-mbv3"], "--space"),
            (["digits", "--cache", "."], "--cache"),
            (["ofa-resnet50", "--options", "{}", "--accuracy", "x.pth"], "--options, --accuracy"),
            (["FILE"], "--space with one of compofa"),
            (["FILE", "--space", "mobilenet"], "ofa-mbv3"),
            (["FILE", "--space", "ofa-mbv3", "--options", "[1.2]"], "JSON object"),
            (["FILE", "--space", "ofa-mbv3", "--options", "width"], "JSON"),
            (["FILE", "--space", "ofa-mbv3", "--cache", "."], "--cache"),
        ],
    )
    def test_options_that_do_not_fit_the_source_are_refused(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], words: str
    ) -> None:
        file = tmp_path / "mine.pth"
        file.write_bytes(b"weights")
        written = [str(file) if word == "FILE" else word for word in arguments]
        code, out, err = fleetnas(capsys, "export", *written, "-o", str(tmp_path / "x.supernet"))
        assert (code, out) == (2, "")
        assert words in err
        assert not (tmp_path / "x.supernet").exists()


class TestDevices:
    def test_it_says_who_is_there_and_why_it_is_idle(self, capsys: pytest.CaptureFixture[str]) -> None:
        topics = Topics()
        with EmbeddedBroker(port=0) as broker:
            agent = MqttTransport(broker.address, "pi4")
            agent.start()
            agent.wait_connected(waiting.STALL_S)
            profile = DeviceProfile(model="Raspberry Pi 4", machine="aarch64", cores=4)
            info = AgentInfo(
                agent="pi4", session=1, profile=profile, settings=(RuntimeSetting(threads=4),), versions={}
            )
            agent.publish(topics.up("pi4", "info"), encode(info), retain=True)
            state = AgentState(state="ready", session=1, instance="a")
            agent.publish(topics.up("pi4", "state"), encode(state), retain=True)
            agent.publish(topics.up("hostile", "state"), b"\xff", retain=True)
            code, out, _ = fleetnas(capsys, "devices", "--broker", str(broker.address), "--json", "--wait", "2")
            agent.close()
        assert code == 0
        hostile, found = map(json.loads, out.splitlines())
        assert (hostile["device"], hostile["state"]) == ("hostile", "unreadable")
        assert found["device"] == "pi4"
        assert found["settings"] == ["onnxruntime_cpu_4t_fp32"]
        assert "no search" in found["why"]

    def test_an_empty_fleet_says_how_to_fill_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        with EmbeddedBroker(port=0) as broker:
            code, out, _ = fleetnas(capsys, "devices", "--broker", str(broker.address), "--wait", "0.3")
        assert code == 0
        assert "fleetnas-agent run --broker" in out


def test_the_snapshot_follows_a_device_through_its_campaign() -> None:
    simulation = Simulation(CampaignPlan(targets="auto:2", budget=10, initial_design=6))
    simulation.add("pi0")
    simulation.begin()
    states = set()
    for _ in range(200):
        simulation.step()
        snapshot = simulation.campaign.snapshot(simulation.clock.unix())
        states |= {device.state for device in snapshot.devices}
        if simulation.campaign.finished:
            break
    assert states >= {"measuring", "verifying", "done"}
    (device,) = snapshot.devices
    assert device.predictor_error is not None
    assert [target.met for target in device.targets] == [True, True]
    assert all(target.evaluated_accuracy is not None for target in device.targets)
    assert snapshot.phase == "finished"
