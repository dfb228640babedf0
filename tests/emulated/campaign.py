"""What an emulated board is put through: installation, doctor, comparison of model bytes, whole campaigns over MQTT."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from debian_root import DebianRoot, EmulationError, say
from entering import stop
from model_hashes import model_hashes
from pasted_line import FLEETNAS, VENV, pasted_agent
from rigs.brokers import mosquitto

from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
from fleetnas.coordinator.report.artifacts import read_results
from fleetnas.coordinator.report.results import DeviceResult
from fleetnas.fleet_protocol.transports.base import BrokerAddress
from fleetnas.supernet_export.export import export_digits
from fleetnas.supernet_export.spaces.digits import DigitsSpace

_WORK, _SCRIPTS = "/mnt/work", "/mnt/scripts"
#: An emulated convolution is hundreds of times slower than a real one, and its timing says nothing: as few as can be.
_SEARCH = (
    *("--targets", "auto:2", "--budget", "8", "--min-runs", "3", "--min-time", "0", "--warmup", "0"),
    *("--deadline", "900", "--join", "1200", "--grace", "300"),
)
_RANDOM_ARCHITECTURES = 6
_ATTEMPTS = 3
_AGENT_STOP_S = 60.0


class BoardTrial:
    """One board, and a folder for what the trial leaves behind."""

    def __init__(self, root: DebianRoot, work: Path) -> None:
        self._root = root
        self._board = root.board
        self._work = work
        self._bundle = work / "digits.supernet"
        self._bindings = {work: _WORK, Path(__file__).parent: _SCRIPTS}

    def run(self) -> None:
        """All of it; `EmulationError` with what is wrong at the first thing that is."""
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(parents=True)
        export_digits(self._bundle)
        self._paste()
        self._doctor(None)
        self._stage_service()
        self._compare_models()
        for setting in self._board.settings:
            self._campaign(setting, self._work, lambda folder, setting=setting: self._search_of(setting, folder))

    def _paste(self) -> None:
        """As a newcomer: the pasted line installs and starts the agent, and a search meets its targets there."""
        shutil.rmtree(self._root.root / VENV.lstrip("/"), ignore_errors=True)
        work = self._work / "pasted"
        work.mkdir()
        with pasted_agent(self._root, self._bindings, work, f"{_WORK}/{work.name}") as agent:
            self._campaign("the pasted line", work, lambda folder: self._search(agent.broker, folder, "pasted"))
            say(f"pasted line: verified winners {time.monotonic() - agent.pasted_s:.0f} s after it was pasted")
        (self._work / "packages.txt").write_text(self._run("freeze", f"{VENV}/bin/pip", "freeze", "--all"))

    def _doctor(self, broker: BrokerAddress | None) -> None:
        reach = ("--broker", str(broker)) if broker else ()
        said = json.loads(self._run("doctor", f"{VENV}/bin/fleetnas-agent", "doctor", "--json", *reach))
        for check in said["checks"]:
            say(f"doctor: {check['status']:<8} {check['name']}: {check['text']}")
        broken = [check["name"] for check in said["checks"] if check["status"] == "broken"]
        if broken:
            raise EmulationError(f"the doctor finds {', '.join(broken)} broken")

    def _stage_service(self) -> None:
        """No systemd runs inside; what it would be given is written to a folder."""
        stage = f"{_WORK}/service"
        command = [f"{VENV}/bin/fleetnas-agent", "install-service", "--root", stage, "--broker", "localhost"]
        self._run("service", *command, "--setting", self._board.settings[0])
        (unit,) = (self._work / "service").rglob("*.service")
        if f"ExecStart={VENV}/bin/python" not in unit.read_text():
            raise EmulationError(f"the unit {unit} does not start the Python that it was installed with")

    def _compare_models(self) -> None:
        """The bytes that the board builds must be the bytes that this machine builds."""
        space = DigitsSpace()
        random = space.sample(_RANDOM_ARCHITECTURES, np.random.default_rng(0))
        genomes = np.concatenate([space.smallest(), space.largest(), random])
        architectures = self._work / "architectures.json"
        architectures.write_text(json.dumps([item.model_dump() for item in space.decode(genomes)]))
        runtimes = sorted({setting.partition(",")[0] for setting in self._board.settings})
        inside = [f"{_WORK}/{path.name}" for path in (self._bundle, architectures)]
        script = f"{_SCRIPTS}/model_hashes.py"
        theirs = json.loads(self._run("models", f"{VENV}/bin/python", script, *inside, *runtimes))
        ours = model_hashes(self._bundle, architectures, runtimes)
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            raise EmulationError(f"the board builds other bytes than this machine of: {', '.join(different)}")
        say(f"models: {len(ours)} files of {', '.join(runtimes)}, fp32 and int8, have the same bytes on both sides")

    def _campaign(self, label: str, work: Path, search: Callable[[Path], bool]) -> None:
        """Make a whole campaign, which `search` does in a new folder; it returns whether every target was met.

        Tried again where a target is missed: emulation at low priority on a busy machine slows a winner's measurements.
        """
        begin = time.monotonic()
        for attempt in range(1, _ATTEMPTS + 1):
            folder = work / f"{label.partition(',')[0].replace(' ', '-')}-{attempt}"
            folder.mkdir()
            if search(folder):
                break
            say(f"campaign with {label}: a target was missed at a load average of {os.getloadavg()[0]:.1f}")
        else:
            raise EmulationError(f"{_ATTEMPTS} campaigns with {label} missed targets; try when less else runs here")
        (device,) = read_results(folder / "out").fleet
        self._check_winners(device, folder / "out")
        versions = ", ".join(f"{name} {version}" for name, version in sorted(device.versions.items()))
        say(f"campaign with {label}: {time.monotonic() - begin:.0f} s, on {versions}")

    def _search_of(self, setting: str, work: Path) -> bool:
        """Search with an agent of one setting, which ends after it."""
        with _broker(work) as broker, self._agent(broker, setting, work / "agent.log"):
            self._doctor(broker)
            return self._search(broker, work, setting)

    def _search(self, broker: BrokerAddress, work: Path, label: str) -> bool:
        """Search, and return whether every target was met. `EmulationError` where it did not come to an end."""
        code = subprocess.run(
            [
                *(FLEETNAS, "search", "--broker", str(broker), *_SEARCH, "--supernet", str(self._bundle)),
                *("--out", str(work / "out"), "--store", str(work / "runs.sqlite")),
            ],
            stdout=sys.stderr,
            check=False,
        ).returncode
        if not (work / "out" / "results.json").exists() or read_results(work / "out").status == "running":
            raise EmulationError(f"the campaign with {label} broke off with code {code}; see {work}")
        (device,) = read_results(work / "out").fleet
        if device.failures or device.status != "finished":
            failures = [f"{failure.reason}: {failure.detail}" for failure in device.failures]
            raise EmulationError(f"{label} {device.status}: {device.reason} {'; '.join(failures)}; see {work}")
        return code == 0

    def _check_winners(self, device: DeviceResult, out: Path) -> None:
        if device.profile is None or device.profile.machine != self._board.machine:
            raise EmulationError(f"the agent announced {device.profile}, not a {self._board.machine}")
        with (out / "measurements.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["purpose"] == "verification"]
        for target in device.targets:
            if not target.met or target.model is None:
                raise EmulationError(f"target {target.target_ms} ms was not met: {target.reason}")
            shipped = hashlib.sha256((out / target.model).read_bytes()).hexdigest()
            measured = [row for row in rows if row["model_sha256"] == shipped]
            if shipped != target.sha256 or not measured:
                raise EmulationError(f"{target.model} has {shipped}, which the device did not measure")
            say(
                f"winner: {target.verified_ms:.4g} ms for {target.target_ms:.4g} ms, measured {len(measured)} times "
                f"as {shipped[:12]}, the file that ships"
            )

    @contextlib.contextmanager
    def _agent(self, broker: BrokerAddress, setting: str, log: Path) -> Iterator[None]:
        """An agent inside, asked to end at the end, which it must do in good order."""
        command = [f"{VENV}/bin/fleetnas-agent", "run", "--broker", str(broker), "--name", self._board.architecture]
        with log.open("wb") as output:
            process = self._root.entrance(self._bindings).start([*command, "--setting", setting], output)
            try:
                yield
                if process.poll() is not None:
                    raise EmulationError(f"the agent ended with code {process.returncode} before it should; see {log}")
            finally:
                code = stop(process, _AGENT_STOP_S)
        if code != 0:
            raise EmulationError(f"the agent ended with code {code} when it was asked to stop; see {log}")

    def _run(self, name: str, *command: str) -> str:
        return self._root.run(name, command, self._bindings)


@contextlib.contextmanager
def _broker(folder: Path) -> Iterator[BrokerAddress]:
    """mosquitto where it is installed, else the embedded broker."""
    if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin"):
        with mosquitto(folder) as running:
            yield running.address
    else:
        with EmbeddedBroker(port=0) as embedded:
            yield embedded.address
