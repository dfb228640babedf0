"""An option is used or refused: no command takes one in silence that changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from rigs.command_line import fleetnas
from rigs.untrained_supernet import write_untrained

from fleetnas.agent.cli.main import main as agent_main
from fleetnas.coordinator.cli.app import app

MISSING = "/nowhere.supernet"
#: Values of options for which 5 is none.
TEXTS = {
    "--targets": "5",
    "--minimise": "energy",
    "--resume": "run-1",
    "--strategy": "joint",
    "--engine": "evolution",
    "--prior": "default",
    "--conditions": "sustained",
    "--devices": "pi4",
    "--broker": "127.0.0.1",
    "--setting": "onnxruntime,threads=2",
    "--precision": "int8",
    "--runtime": "onnxruntime",
    "--mirror": "https://mirror.example/bundles",
    "--track": "mlflow:tracked",
    "--max-parameters": "4M",
    "--max-macs": "4M",
    "--max-activation-memory": "4MB",
    "--max-file-size": "4MB",
    "--timeout": "2h",
}
OUTPUTS = {"--out", "--json"}
PLAN = {
    *("--targets", "--budget", "--strategy", "--seed", "--prior", "--prior-without", "--grace", "--join"),
    *("--rerank", "--name", "--targets-file", "--accuracy-floor"),
    "--deadline",
    *("--warmup", "--min-time", "--min-runs", "--fixed-protocol", "--conditions", "--profile-winners"),
    *("--max-parameters", "--max-macs", "--max-activation-memory", "--max-file-size"),
}
BASELINES = {"--baseline", "--baseline-accuracy", "--input-shape"}
IMAGES = {"--store", "--calibration-images", "--evaluation-images", "--some-classes", "--track"}
HERE = {*IMAGES, "--supernet", "--metrics-port", "--timeout", "--models"}
CONNECTION = {
    *("--broker", "--fleet", "--username", "--password-file", "--ca-file", "--certificate-file", "--key-file"),
}
FLEET = {*CONNECTION, "--devices", "--mirror", "--share", "--bundle-rate", "--bundles-at-once"}
LOCAL = {"--setting", "--runtime", "--threads", "--state-dir"}
OFFLINE = {"--space", "--latency-table", "--accuracy", "--engine"}
BOUNDS = {name for name in PLAN if name.startswith("--max-")}
#: What each kind of search is begun with, and the options that it uses.
KINDS = {
    "fleet": (
        ("--broker", "127.0.0.1", "--targets", "5", "--supernet", MISSING),
        OUTPUTS | PLAN | HERE | FLEET | BASELINES | {"--wait-for", "--no-pool"},
    ),
    "resumed": (("--broker", "127.0.0.1", "--resume", "run-1"), OUTPUTS | HERE | FLEET),
    "local": (("--local", "--targets", "5", "--supernet", MISSING), OUTPUTS | PLAN | HERE | LOCAL | BASELINES),
    "resumed-local": (("--local", "--resume", "run-1"), OUTPUTS | HERE | LOCAL),
    "dry-run": (
        ("--broker", "127.0.0.1", "--targets", "5", "--supernet", MISSING, "--dry-run"),
        OUTPUTS | PLAN | HERE | FLEET | BASELINES | {"--wait-for", "--no-pool"},
    ),
    "offline": (
        ("--offline", "--targets", "5"),
        OUTPUTS | OFFLINE | BOUNDS | {"--targets", "--strategy", "--seed", "--rerank", "--calibration-images"},
    ),
}
TIMES = {name for name in PLAN if not name.startswith("--max-")} - {
    *("--targets", "--budget", "--strategy", "--seed", "--prior", "--prior-without", "--rerank"),
    *("--targets-file", "--accuracy-floor"),
}
CHOSEN = {"--setting", "--runtime", "--threads", "--precision"}
#: The same of measurements of given subnets.
MEASUREMENTS = {
    "fleet": (
        ("--broker", "127.0.0.1", MISSING, "smallest"),
        OUTPUTS | TIMES | IMAGES | FLEET | CHOSEN | {"--wait-for", "--target"},
    ),
    "resumed": (("--broker", "127.0.0.1", "--resume", "run-1"), OUTPUTS | IMAGES | FLEET),
    "local": (
        ("--local", MISSING, "smallest"),
        OUTPUTS | TIMES | IMAGES | CHOSEN | {"--state-dir", "--target"},
    ),
    "resumed-local": (("--local", "--resume", "run-1"), OUTPUTS | IMAGES | {"--state-dir"}),
}
#: They choose the kind.
CHOICES = {"--offline", "--local", "--resume", "--card", "--dry-run"}
#: Used beside or without certain others, see below.
WITH_ANOTHER = {
    *(
        "--minimise",
        "--cool-for",
        "--metrics-address",
        "--credentials",
        "--selection-images",
        "--worst-case",
        "--weights",
    ),
    "--verify-boards",
}


def options_of(command: Any) -> dict[str, Any]:
    return {option.opts[-1]: option for option in command.params if option.param_type_name == "option"}


def commands(group: Any, *names: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield names, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


COMMANDS = dict(commands(typer.main.get_command(app)))
SEARCH = options_of(COMMANDS["search",])


def given(option: Any) -> list[str]:
    name = option.opts[-1]
    return [name] if option.is_flag else [name, TEXTS.get(name, "5")]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_search_uses_an_option_or_refuses_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    begun, used = KINDS[kind]
    assert used_options(capsys, "search", *begun) == used


@pytest.mark.parametrize("kind", MEASUREMENTS)
def test_every_kind_of_measurement_uses_an_option_or_refuses_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    begun, used = MEASUREMENTS[kind]
    assert used_options(capsys, "measure", *begun) == used


def used_options(capsys: pytest.CaptureFixture[str], command: str, *begun: str) -> set[str]:
    """The options of a search or a measurement that it does not refuse where it is begun like this."""
    options = options_of(COMMANDS[command,])
    left = {name: option for name, option in options.items() if name not in CHOICES | WITH_ANOTHER}
    while True:  # everything at once, without what was refused before
        code, out, err = fleetnas(
            capsys, command, *begun, *(word for option in left.values() for word in given(option))
        )
        assert (code in (1, 2), out) == (True, "")
        assert "Traceback" not in err
        refused = set(err.partition("; leave out ")[2].strip().split(", ")) & set(left)
        if not refused:
            break  # something else is wrong: a file that is not there
        assert code == 2
        left = {name: option for name, option in left.items() if name not in refused}
    return set(left)


def test_options_that_need_another_are_refused_without_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    begun = ["search", *KINDS["fleet"][0], "--store", str(tmp_path / "runs.sqlite")]
    for alone, another in (
        (("--cool-for", "9"), ("--conditions", "cool")),
        (("--metrics-address", "0.0.0.0"), ("--metrics-port", "0")),
        (("--selection-images", "images"), ("--rerank", "5")),
        (("--minimise", "energy"), ("--accuracy-floor", "75")),
        (("--worst-case",), ("--models", "2")),
    ):
        code, _, err = fleetnas(capsys, *begun, *alone)
        assert (code, alone[0] in err, another[0] in err) == (2, True, True)
        code, _, err = fleetnas(capsys, *begun, *alone, *another)
        assert MISSING in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("watch", "--fleet", "lab"), "leave out --fleet"),
        (("watch", "--username", "u", "--ca-file", "ca.pem"), "leave out --username, --ca-file"),
        (("watch", "--broker", "127.0.0.1", "--store", "x.sqlite"), "leave out --store"),
        (("devices", "--broker", "127.0.0.1", "--password-file", "p"), "--username"),
        (("devices", "--broker", "127.0.0.1", "--key-file", "k"), "--certificate-file"),
        (("broker", "--port", "1", "renew", "folder"), "leave out --port"),
        (("broker", "--no-installer", "--extras", "agent"), "leave out --extras"),
        (("enroll", "pi4", "--authority", "a", "--advertise", "pi.example"), "leave out --advertise"),
        (("runs", "--status", "failed", "rename", "latest"), "leave out --status"),
        (("broker", "--host", "::", "init", "folder"), "leave out --host"),
        (("broker", "rotate", "folder", "--finish", "--compromised"), "--compromised"),
        (("broker", "rotate", "folder", "--finish", "-o", "next.credentials"), "--output"),
        (("export", "digits", "--cache", "folder"), "--cache"),
        (
            ("finetune", "smallest", "--bundle", "b", "-o", "o", "--epochs", "0", "--seed", "1", "--resume"),
            "--seed, --resume",
        ),
        (("export", "ofa-resnet50", "--space", "ofa-resnet50"), "--space"),
        (("search", "--broker", "127.0.0.1", "--targets", "5", "--devices", ","), "names nobody"),
        (("search", "--broker", "127.0.0.1", "--credentials", "c", "--username", "u"), "--username"),
        (("measure", MISSING, "smallest", "--local", "--credentials", "c"), "leave out --credentials"),
        (("measure", MISSING, "smallest", "--local", "--resume", "run-1"), "leave out smallest"),
        (("measure", MISSING, "smallest", "--local", "--cool-for", "9"), "leave out --cool-for"),
        (("measure", MISSING, "--local", "--card", "c.json", "--threads", "2"), "leave out --threads"),
        (("bench", MISSING, "--broker", "127.0.0.1", "--mirror", "https://mirror.example/b"), "leave out --mirror"),
        (("bench", MISSING, "--broker", "127.0.0.1", "--cool-for", "9"), "leave out --cool-for"),
        (("search", "--local", "--credentials", "c"), "leave out --credentials"),
        (("search", "--broker", "127.0.0.1", "--supernet", MISSING, "--some-classes"), "leave out --some-classes"),
        (("search", "--offline", "--credentials", "c"), "leave out --credentials"),
    ],
)
def test_other_commands_refuse_what_they_have_no_use_for(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    targets = ("--targets", "5") if arguments[0] == "search" else ()
    code, out, err = fleetnas(capsys, *arguments, *targets)
    assert (code, out) == (2, "")
    assert words in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "model.onnx", "--runs", "2"), "give at least 3"),
        (("bench", "model.onnx", "--time", "5", "--max-time", "1"), "--max-time 1 is below the 5 s"),
        (("bench", "model.onnx", "--csv", "x.csv"), "--csv needs --sustained"),
        (("run", "--broker", "127.0.0.1", "--password-file", "p"), "--username"),
        (("run", "--broker", "127.0.0.1", "--key-file", "k"), "--certificate-file"),
    ],
)
def test_the_agent_refuses_what_it_would_not_do(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(SystemExit) as ended:
        agent_main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_every_command_is_looked_at() -> None:
    """A new command, or a new option of one, is written down here once it is known to be used or refused."""
    found = {" ".join(names): len(options_of(command)) for names, command in COMMANDS.items()}
    assert found == {
        "": 4,
        "accuracy": 0,
        "accuracy evaluate": 14,
        "accuracy fit": 5,
        "bench": 26,
        "broker": 8,
        "broker init": 5,
        "broker renew": 1,
        "broker rotate": 3,
        "dashboard": 13,
        "demo": 3,
        "devices": 14,
        "enroll": 9,
        "evaluate": 7,
        "export": 16,
        "export-data": 7,
        "export-latency": 5,
        "finetune": 13,
        "inspect": 2,
        "installer": 13,
        "measure": 41,
        "mirror": 0,
        "predictor": 0,
        "portfolio": 19,
        "predictor evaluate": 5,
        "results": 3,
        "revoke": 1,
        "runs": 5,
        "runs delete": 2,
        "runs rename": 1,
        "search": len(SEARCH),
        "sign": 1,
        "train": 33,
        "verify": 1,
        "watch": 10,
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images for each of ten classes."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "images" / str(label)
        folder.mkdir(parents=True)
        for number in range(2):
            image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_the_digits_supernet_takes_the_images_that_it_is_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, images: Path
) -> None:
    pytest.importorskip("sklearn")
    bundle = str(write_untrained(tmp_path / "untrained.supernet"))
    found = []
    for options in (("--images",), ("--images", "--calibration-images")):
        each = [word for option in options for word in (option, str(images))]
        code, out, err = fleetnas(capsys, "evaluate", bundle, "smallest", "--json", *each)
        assert (code, err) == (0, "")
        found.append(json.loads(out))
    assert [each["accuracy_images"] for each in found] == [20, 20]  # of its own it has 600
    assert found[0]["sha256"] != found[1]["sha256"]  # other images to calibrate on make another file


def test_a_search_refuses_images_that_cannot_be_read_before_it_has_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, images: Path
) -> None:
    pytest.importorskip("sklearn")
    bundle = write_untrained(tmp_path / "untrained.supernet")
    broken = images / "3" / "1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (images / ".git").mkdir()
    store = str(tmp_path / "runs.sqlite")
    for option in ("--calibration-images", "--evaluation-images"):
        begun = ("--broker", "127.0.0.1", "--targets", "5", "--supernet", str(bundle), "--store", store)
        code, _, err = fleetnas(capsys, "search", *begun, "--out", str(tmp_path / "out"), option, str(images))
        assert code == 2
        assert f"1 of 20 images in {images} cannot be read: 3/1.png (" in err
    assert fleetnas(capsys, "runs", "--store", store, "--json") == (0, "", "")
