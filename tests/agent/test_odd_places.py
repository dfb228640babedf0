"""Users without a home, read-only containers, files of another user, hosts that are renamed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rigs.brokers import Mosquitto

from fleetnas.agent.cli.configuration import default_configuration_files
from fleetnas.agent.cli.doctor.finding import DoctorContext
from fleetnas.agent.cli.doctor.storage import check_state_folder, service_findings
from fleetnas.agent.cli.installation.layout import SERVICE_STATE, Installation
from fleetnas.agent.cli.main import main
from fleetnas.agent.service import own_name as naming
from fleetnas.agent.service import running
from fleetnas.agent.service.identity import Identity
from fleetnas.agent.service.outbox import Outbox
from fleetnas.agent.service.own_name import own_name, remember_name
from fleetnas.agent.service.state_folder import StateFolder, default_engine_folder, default_state_folder
from fleetnas.coordinator.cli.options import existing_store
from fleetnas.coordinator.store.default_store import store_location
from fleetnas.fleet_protocol.errors import UsageError
from fleetnas.fleet_protocol.folders import user_folder
from fleetnas.fleet_protocol.messages import TaskKey
from fleetnas.supernet_export.checkpoints.download import cache_directory

ROOT = Path(__file__).resolve().parent.parent.parent
AGENT = (sys.executable, "-m", "fleetnas.agent")
COORDINATOR = (sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()")
UNKNOWN = 54_321
HOMES = ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "STATE_DIRECTORY", "USER")


def run(
    *words: object, environment: dict[str, str] | None = None, **options: object
) -> subprocess.CompletedProcess[str]:
    command = [str(word) for word in words]
    settings = {"capture_output": True, "text": True, "timeout": 60, "check": False, "cwd": str(ROOT)} | options
    return subprocess.run(command, env=environment, **settings)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def homeless(tmp_path: Path) -> dict[str, str]:
    """The environment of a user that has no home."""
    kept = {name: value for name, value in os.environ.items() if name not in HOMES}
    return {**kept, "FLEETNAS_HOST_LOCK": str(tmp_path / "lock")}


def unknown_user(*words: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run as a user whom this system does not know; skips where the system makes none.

    In a user namespace of its own that user owns what the caller owns, and is not root to anything else.
    """
    if shutil.which("unshare") is None:
        pytest.skip("util-linux is not installed")
    mapped = ("unshare", "--user", f"--map-user={UNKNOWN}", f"--map-group={UNKNOWN}", "sh", "-c")
    if run(*mapped, f"test $(id -u) = {UNKNOWN}").returncode != 0:
        pytest.skip("this system has no user namespaces")
    return run(*mapped, 'exec "$@"', "sh", *words, environment=environment)


# -- a user without a home -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (*AGENT, "--version"),
        *((*AGENT, name, "--help") for name in ("run", "status")),
        (*COORDINATOR, "--version"),
        (*COORDINATOR, "search", "--help"),
    ],
)
def test_a_user_without_a_home_gets_version_and_help(words: tuple[str, ...], homeless: dict[str, str]) -> None:
    done = unknown_user(*words, environment=homeless)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ((*AGENT, "run", "--broker", "localhost"), "--state-dir DIR"),
        ((*AGENT, "status"), "--state-dir DIR"),
        ((*COORDINATOR, "runs"), "--store FILE"),
        ((*COORDINATOR, "runs", "--store", "~/runs.sqlite"), "--store"),
    ],
)
def test_what_needs_a_folder_says_which_option_names_one(
    words: tuple[str, ...], option: str, homeless: dict[str, str]
) -> None:
    done = unknown_user(*words, environment=homeless)
    assert done.returncode in (1, 2)
    assert option in done.stderr
    assert "Traceback" not in done.stderr


def test_with_the_option_a_user_without_a_home_is_served(tmp_path: Path, homeless: dict[str, str]) -> None:
    done = unknown_user(*AGENT, "status", "--state-dir", tmp_path, environment=homeless)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_home_that_is_closed_to_us_has_no_configuration_for_us(tmp_path: Path, homeless: dict[str, str]) -> None:
    closed = tmp_path / "closed"
    (closed / ".config/fleetnas").mkdir(parents=True)
    give_away(closed, 0o700)
    done = unknown_user(*AGENT, "run", environment={**homeless, "HOME": str(closed)})
    assert done.returncode == 2
    assert "no broker was named" in done.stderr


def give_away(path: Path, mode: int) -> None:
    """Let a path be another user's; skips where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    path.chmod(mode)
    os.chown(path, 1, 1)


def test_folders_are_looked_up_when_they_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in HOMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", classmethod(no_home))
    assert default_configuration_files() == (Path("/etc/fleetnas/agent.conf"),)
    assert default_engine_folder() is None
    for look_up in (default_state_folder, cache_directory, lambda: store_location(None)):
        with pytest.raises(UsageError, match=r"has no home folder, and \$XDG_\w+ is not set"):
            look_up()
    with pytest.raises(UsageError, match="there is no store"):
        existing_store(str(tmp_path / "absent.sqlite"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_folder("XDG_CACHE_HOME", ".cache") == tmp_path


def no_home(_: type[Path]) -> Path:
    raise RuntimeError("Could not determine home directory.")


# -- a read-only container -------------------------------------------------------------------------------------------


def in_a_read_only_container(*words: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run where no usual place takes temporary files; skips where this system makes no such place."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can make a read-only place")
    if any(ROOT.is_relative_to(place) for place in ("/tmp", "/var/tmp")):
        pytest.skip("this checkout lies where the test hides everything")
    script = 'for place in /var/tmp /tmp; do mount -t tmpfs -o ro none $place || exit 77; done; cd /proc && exec "$@"'
    mounted = ["unshare", "--mount", "sh", "-c", script, "sh", *words]
    environment = {**environment, "PYTHONPATH": str(ROOT)}
    done = run(*mounted, environment=environment)
    if done.returncode == 77:
        pytest.skip("this system mounts nothing here")
    return done


def test_a_read_only_container_is_told_of_tmpdir(homeless: dict[str, str]) -> None:
    environment = {**homeless, "HOME": "/proc", "FLEETNAS_HOST_LOCK": "/proc/lock"}
    doctor = in_a_read_only_container(*AGENT, "doctor", "--json", "--state-dir", "/proc/x", environment=environment)
    found = {check["name"]: check for check in json.loads(doctor.stdout)["checks"]}
    assert found["temporary files"]["status"] == "broken"
    assert "set TMPDIR" in found["temporary files"]["fix"]
    assert found["state folder"]["status"] == "broken"
    assert "defect of the doctor" not in doctor.stdout
    served = in_a_read_only_container(
        *(*AGENT, "run", "--broker", "localhost", "--state-dir", "/proc/x"), environment=environment
    )
    assert served.returncode == 1
    assert "TMPDIR" in served.stderr
    assert "Traceback" not in served.stderr


# -- files of another user, and the doctor ---------------------------------------------------------------------------


def context(state: Path, name: str = "pi") -> DoctorContext:
    return DoctorContext(state, "default", name, None)


def test_the_doctor_looks_where_the_agent_writes(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state", "default", "pi")
    (finding,) = check_state_folder(context(folder.root))
    assert (finding.status, "it will be made" in finding.text) == ("ok", True)
    assert not folder.root.exists(), "looking leaves nothing behind"
    folder.agent.mkdir(parents=True)
    (finding,) = check_state_folder(context(folder.root))
    assert (finding.status, "it will be made" in finding.text) == ("ok", False)
    folder.blobs.write_text("in the way")
    (finding,) = check_state_folder(context(folder.root))
    assert (finding.status, finding.text) == ("broken", f"{folder.blobs} is not a folder")


@pytest.mark.parametrize("place", ["", "fleets/default/pi", "fleets/default/pi/outbox.sqlite", "blobs", "probes"])
def test_the_doctor_names_what_root_left_behind(tmp_path: Path, homeless: dict[str, str], place: str) -> None:
    folder = StateFolder(tmp_path / "state", "default", "pi")
    for made in (folder.agent, folder.blobs, folder.probes):
        made.mkdir(parents=True)
    Outbox(folder.outbox).close()
    give_away(folder.root / place, 0o755)
    program = (
        "from fleetnas.agent.cli.doctor.finding import DoctorContext, report_line\n"
        "from fleetnas.agent.cli.doctor.storage import check_state_folder\n"
        "from pathlib import Path\n"
        f"print(report_line(*check_state_folder(DoctorContext(Path({str(folder.root)!r}), 'default', 'pi', None))))"
    )
    said = unknown_user(sys.executable, "-c", program, environment=homeless).stdout
    assert said.startswith("broken   state folder")
    assert f"{(folder.root / place)} cannot be written: it belongs to " in said
    assert f"-> sudo chown -R {UNKNOWN} {folder.root}, or choose another" in said


def test_the_doctor_takes_what_run_takes_and_tries_every_setting(tmp_path: Path, homeless: dict[str, str]) -> None:
    first = min(os.sched_getaffinity(0))
    config = tmp_path / "agent.conf"
    config.write_text(
        f"[agent]\nname = pi\nstate_dir = {tmp_path / 'state'}\n"
        f"settings =\n    onnxruntime,affinity={first}\n    onnxruntime,affinity={first}+1023\n    adb\n"
    )
    environment = {**homeless, "PATH": str(tmp_path)}
    done = run(*AGENT, "doctor", "--json", "--config", config, environment=environment)
    checks = json.loads(done.stdout)["checks"]
    good, absent, adb = [check for check in checks if check["name"] == "setting"]
    assert (good["status"], f"cores {first}" in good["text"]) == ("ok", True)
    assert (absent["status"], "1023 are offline" in absent["text"]) == ("broken", True)
    assert (adb["status"], "adb is not installed" in adb["text"]) == ("broken", True)
    (state,) = [check for check in checks if check["name"] == "state folder"]
    assert str(tmp_path / "state") in state["text"]
    assert done.returncode == 1


def test_the_doctor_of_a_user_says_how_to_check_the_service(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert list(service_findings(tmp_path / "own", installation)) == []
    installation.unit.parent.mkdir(parents=True)
    installation.unit.touch()
    (finding,) = service_findings(tmp_path / "own", installation)
    assert "sudo -u fleetnas STATE_DIRECTORY=/var/lib/fleetnas " in finding.fix
    assert f"doctor --config {installation.configuration}" in finding.fix
    assert list(service_findings(SERVICE_STATE, installation)) == [], "this is its own check"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--setting", "abacus"), "an example is onnxruntime"),
        (("--min-battery", "200"), "battery rule"),
        (("--cache-mb", "0"), "not a whole number of at least 1"),
        (("--name", "a b"), "agent name 'a b' cannot be used"),
        (("--fleet", "a/b"), "fleet"),
        (("--bundle-mirrors", "http"), "off, https, any"),
        (("--log-level", "loud"), "debug, info"),
    ],
)
def test_the_doctor_refuses_what_run_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, str], says: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", *options, "--state-dir", str(tmp_path / "state")])
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert (said.out, says in said.err) == ("", True)


# -- a host that is renamed ------------------------------------------------------------------------------------------


def rename_host(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(naming.platform, "node", lambda: name)


def leave_result(state: Path, name: str, fleet: str = "lab") -> StateFolder:
    folder = StateFolder(state, fleet, name)
    Identity.claim(folder.agent, name, 0.0).release()
    with contextlib.closing(Outbox(folder.outbox)) as outbox:
        outbox.put(TaskKey(task_id="t", attempt=1), b"{}")
    return folder


def board(root: Path, serial: str) -> Path:
    file = root / serial / "proc/device-tree/serial-number"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{serial}\0")
    return root / serial


def test_a_renamed_host_keeps_its_agents_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rename_host(monkeypatch, "raspberrypi.local")
    state = tmp_path / "state"
    assert own_name(state, "lab") == "raspberrypi"
    assert not state.exists(), "asking writes nothing"
    remember_name(state, "raspberrypi")
    rename_host(monkeypatch, "kitchen")
    assert own_name(state, "lab") == "raspberrypi"
    with caplog.at_level(logging.INFO, "fleetnas.agent"):
        remember_name(state, "raspberrypi")
    assert "the host is called kitchen and this agent stays raspberrypi" in caplog.text
    (state / "name.json").write_text("rubbish")
    assert own_name(state, "lab") == "kitchen"


def test_a_copied_memory_card_takes_the_name_of_its_own_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, one, two = tmp_path / "state", board(tmp_path, "100000001"), board(tmp_path, "100000002")
    rename_host(monkeypatch, "pi-1")
    remember_name(state, own_name(state, "lab", one), one)
    rename_host(monkeypatch, "pi-2")
    assert own_name(state, "lab", one) == "pi-1"
    assert own_name(state, "lab", two) == "pi-2"
    remember_name(state, "pi-2", two)
    rename_host(monkeypatch, "pi-3")
    assert own_name(state, "lab", two) == "pi-2"


def test_results_of_a_name_from_before_names_were_remembered_are_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename_host(monkeypatch, "kitchen")
    old = leave_result(tmp_path, "raspberrypi")
    assert own_name(tmp_path, "lab") == "raspberrypi"
    assert own_name(tmp_path, "another-fleet") == "kitchen"
    held = Identity.claim(old.agent, "raspberrypi", 0.0)
    assert own_name(tmp_path, "lab") == "kitchen", "that one is another agent of this host"
    held.release()
    leave_result(tmp_path, "second")
    assert own_name(tmp_path, "lab") == "kitchen", "which of the two it was, nobody can tell"


def test_results_of_other_names_are_told_with_what_delivers_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leave_result(tmp_path, "raspberrypi")
    with caplog.at_level(logging.WARNING, "fleetnas.agent"):
        running.warn_before_serving(StateFolder(tmp_path, "lab", "kitchen"), [])
    assert "1 results of raspberrypi wait" in caplog.text
    assert "fleetnas-agent run --name raspberrypi" in caplog.text
    findings = list(check_state_folder(DoctorContext(tmp_path, "lab", "kitchen", None)))
    assert [finding.name for finding in findings] == ["state folder", "results"]


def test_a_container_with_a_new_name_delivers_what_the_last_one_left(
    tmp_path: Path, mosquitto_broker: Mosquitto, homeless: dict[str, str]
) -> None:
    old = leave_result(tmp_path, "0123456789ab", fleet="default")
    words = (*AGENT, "run", "--broker", mosquitto_broker.address, "--state-dir", tmp_path)
    process = subprocess.Popen(list(map(str, words)), env=homeless, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if "connected to the broker as" in line:
                break
        assert "connected to the broker as 0123456789ab" in said[-1], said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert json.loads((tmp_path / "name.json").read_text())["name"] == "0123456789ab"
    assert old.outbox.exists()
