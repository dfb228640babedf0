"""`fleetnas bench` and `--baseline` refuse what cannot be measured before they ask anybody; what they print."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from rigs.command_line import fleetnas
from rigs.model_files import changed, claim_two_gigabytes, keep_weights_elsewhere, onnx_model
from rigs.simulated_fleet import measurement
from rigs.untrained_supernet import write_untrained

from fleetnas.coordinator.cli.bench_table import print_bench, report_of
from fleetnas.coordinator.records.baselines import BaselineRecord
from fleetnas.coordinator.records.bounds import Bounds
from fleetnas.coordinator.records.outcome import CampaignOutcome, DeviceOutcome, SupernetProvenance
from fleetnas.coordinator.records.statuses import SettingStatus
from fleetnas.fleet_protocol.messages import RuntimeSetting

#: Nobody listens there.
NOWHERE = ("--broker", "127.0.0.1:1")
HOSTILE = {
    "external.onnx": (changed(onnx_model(), keep_weights_elsewhere), "keeps weights in another file"),
    "custom.onnx": (onnx_model(domain="com.microsoft", operator="Gelu"), "needs operator Gelu of com.microsoft"),
    "claims.onnx": (changed(onnx_model(), claim_two_gigabytes), "says that tensor"),
    "cut.onnx": (onnx_model()[:-20], "truncated"),
    "named.tflite": (onnx_model(), "is no TFLite model"),
    "open.onnx": (onnx_model(open_sides=True), "--input-shape input=1x3x224x224"),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("command", ["bench", "search"])
def test_hostile_files_are_refused_before_anybody_is_asked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, command: str
) -> None:
    content, words = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(content)
    store = tmp_path / "runs.sqlite"
    begun = ["bench", str(path)]
    if command == "search":
        supernet = write_untrained(tmp_path / "s.supernet")
        begun = [
            "search",
            "--supernet",
            str(supernet),
            "--targets",
            "5",
            "--store",
            str(store),
            "--baseline",
            str(path),
        ]
    code, out, err = fleetnas(capsys, *begun, *NOWHERE)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not store.exists()


def test_files_that_are_none_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"PK")
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(2 << 30)
    for name, words in (
        ("weights.pt", "neither .onnx nor .tflite"),
        ("sparse.onnx", "has 2,147 MB, and agents are sent model files of at most 537 MB"),
        ("gone.onnx", "cannot be read"),
    ):
        code, out, err = fleetnas(capsys, "bench", str(tmp_path / name), *NOWHERE)
        assert (code, out) == (2, "")
        assert words in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--baseline-accuracy", "76"), "leave out --baseline-accuracy"),
        (("--input-shape", "1x3x8x8"), "leave out --input-shape"),
        (("--baseline", "largest", "--baseline-accuracy", "76"), "there are 0"),
        (("--baseline", "largest", "--input-shape", "1x3x8x8"), "no --baseline is one"),
        (("--baseline", "mine.onnx", "--baseline-accuracy", "high"), "is no percentage"),
        (("--baseline", "mine.onnx", "--baseline-accuracy", "176"), "is no percentage"),
        (("--baseline", "mine.onnx", "--baseline-accuracy", "other.onnx=76"), "names other.onnx"),
        (("--baseline", "mine.onnx", "--input-shape", "wide"), "'wide' is not [NAME=]SHAPE"),
        (("--baseline", "mine.onnx", "--input-shape", "1x3x9x9"), "does not fit input"),
        (("--baseline", "middle"), "architecture 'middle' cannot be read"),
    ],
)
def test_options_on_baselines_are_checked_at_once(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.onnx").write_bytes(onnx_model())
    supernet = write_untrained(tmp_path / "s.supernet")
    begun = ("--supernet", str(supernet), "--targets", "5", "--store", "runs.sqlite")
    code, out, err = fleetnas(capsys, "search", *begun, *NOWHERE, *options)
    assert (code, out) == (2, "")
    assert words in err
    assert not Path("runs.sqlite").exists()


def outcome() -> CampaignOutcome:
    def device(name: str, *rows: BaselineRecord) -> DeviceOutcome:
        return DeviceOutcome(name, RuntimeSetting(), SettingStatus.FINISHED, baselines=rows)

    def row(name: str, **fields: object) -> BaselineRecord:
        values = {"run_id": "r", "device": name, "setting_label": "onnxruntime", "baseline": "mine.onnx", "done": True}
        return BaselineRecord(**{**values, **fields})  # type: ignore[arg-type]

    slow = measurement(40.0, quality="slowed", undisturbed_ms=20.0)
    return CampaignOutcome(
        "r",
        SupernetProvenance("s", "0" * 64, "digits", "built in"),
        "bottom-up",
        40,
        Bounds(),
        0.0,
        1.0,
        devices=(
            device("slow", row("slow", measurements=(slow,) * 3, memory_bytes=30_000_000)),
            device("fast", row("fast", measurements=(measurement(12.0),) * 3)),
            device("none", row("none", reason="its agent takes no model files")),
        ),
    )


def test_the_table_has_a_row_per_device_setting() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_bench(console, outcome())
    title, heading, *rows = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert title.strip() == "mine.onnx"
    assert heading.split()[:4] == ["device", "setting", "median", "ms"]
    assert [row.split("/")[0] for row in rows] == ["fast", "slow", "none"]
    assert "30.0 MB" in rows[1]
    assert "the device was slowed" in rows[1]
    assert "its agent takes no model files" in rows[2]


def test_the_json_has_the_same_rows() -> None:
    rows = report_of(outcome())["rows"]
    assert [(row["device"], row["latency_ms"], row["quality"]) for row in rows] == [
        ("slow", 40.0, "slowed"),
        ("fast", 12.0, "ok"),
        ("none", None, None),
    ]
    assert rows[2]["reason"] == "its agent takes no model files"
