"""Run the commands of one page as a reader would, on a machine that is thrown away afterwards.

`run_page` starts this file in namespaces of its own (network, mounts, processes) on an overlay of the whole file
system, so that `/etc`, `/opt` and `/data` may be written, names like `fleet.example` lead to this machine, and nothing
outlives it. It prints one JSON object per command. Budgets and times are made small by the environment; the words of a
command are not changed, except that `...` stands for the options of a usual search, half an hour is three seconds,
a training has one epoch, and 50 subnets are evaluated. `systemctl` only says that it was called: there is no systemd
inside.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from rigs import documented_world, waiting  # noqa: E402
from rigs.documented_commands import Command, commands  # noqa: E402
from rigs.documented_machine import GIVEN, enter  # noqa: E402
from rigs.documented_world import call  # noqa: E402

#: A usual search, in the place of `...`.
USUAL = "--supernet digits.supernet --targets auto:2"
#: Short runs: click reads an option that is not given from FLEETNAS_COMMAND_OPTION where it is told this prefix.
SHORT = {
    "FLEETNAS_SEARCH_BUDGET": "3",
    "FLEETNAS_SEARCH_FIXED_PROTOCOL": "1",
    "FLEETNAS_SEARCH_JOIN": "120",
    **{
        f"FLEETNAS_{command}_{option}": value
        for command in ("SEARCH", "MEASURE", "BENCH")
        for option, value in (("MIN_TIME", "0.02"), ("MIN_RUNS", "5"), ("WARMUP", "0.02"))
    },
}
BROKER = "fleetnas broker --host 0.0.0.0"
AGENT = "fleetnas-agent run --broker localhost --name pi4 --setting onnxruntime,threads=4 --accept-models"
#: An authority and its broker, for pages that take them as given.
AUTHORITY = (
    "fleetnas broker init authority --host fleet.example",
    "fleetnas enroll pi4 --authority authority -o pi4.credentials",
    "fleetnas-agent run --credentials pi4.credentials",
)
#: A search from which every agent's predictor learns.
SEARCH_OF_BOTH = (
    "fleetnas search --broker localhost --supernet my.supernet --calibration-images data/train"
    " --targets auto:2 --budget 14"
)
MEASURED_BY_BOTH = "fleetnas measure my.supernet --broker localhost --calibration-images data/train"
#: Programs that serve until they are stopped, and the words that say that they do.
_SERVERS = (
    (re.compile(r"fleetnas broker(?= --host| --port|$)"), re.compile("broker listens"), "broker"),
    (re.compile(r"fleetnas-agent run"), re.compile("INFO connected to the broker"), "agent"),
    (re.compile(r"fleetnas dashboard"), re.compile("http://"), "dashboard"),
    (re.compile(r"fleetnas enroll .*--serve"), re.compile("sh -c"), "installer"),
    (re.compile(r"dask scheduler"), re.compile("Scheduler at"), "scheduler"),
    (re.compile(r"dask worker"), re.compile("Registered to"), "worker"),
)
#: What a command's words become.
_SHORTER = (
    (re.compile(r"--sustained 30m"), "--sustained 3s --window 1s"),
    (re.compile(r"(fleetnas (?:train|finetune) .*--epochs) \d+"), r"\1 1"),
    (re.compile(r"(accuracy evaluate .* -n) \d+"), r"\1 50"),
    (re.compile(r"--cool-for \d+"), "--cool-for 1"),
)
#: Shell scripts in the place of programs: no `sudo` is needed, and another machine is this one with a state of its own.
_STAND_INS = {
    "sudo": 'exec "$@"',
    "ssh": 'export XDG_STATE_HOME="$XDG_STATE_HOME/$1"; shift; exec "$@"',
    "systemctl": 'echo "systemctl $*"',
}
_ASSIGNMENT = re.compile(r"^(?:export )?(\w+)=(.*)$", re.DOTALL)
#: A console script, except that options which are not given are read from the environment.
_PROGRAM = """#!{python}
import sys

if __name__ == "__main__":
    import typer.core

    plain = typer.core.TyperGroup.main
    prefix = {{"auto_envvar_prefix": "FLEETNAS"}}
    typer.core.TyperGroup.main = lambda self, *words, **more: plain(self, *words, **more | prefix)
    sys.argv[0] = {name!r}
    from fleetnas.{module} import main

    main()
"""


def furnish(folder: Path) -> None:
    """Prepare `folder` with what all pages take as given: minutes of work, done once."""
    _inside(folder, "--furnish", str(GIVEN))


def run_page(page: str, given: Path) -> list[dict[str, object]]:
    """Run a page in namespaces of its own, from a copy of what `furnish` prepared; returns one record per command."""
    return [json.loads(line) for line in _inside(given, "--play", page, str(GIVEN)).splitlines()]


def _inside(folder: Path, *step: str) -> str:
    enter = [sys.executable, __file__, "--enter", str(folder), *step]
    run = waiting.run(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", *enter])
    if run.returncode:
        raise RuntimeError(f"{' '.join(step)}: {run.stderr[-3000:]}")
    return run.stdout


class Scene:
    """The reader's folder, with what the pages take as given, and the programs that serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, subprocess.Popen[Any]] = {}
        #: The command of the agent that a page takes as given; None: the page starts its agents itself.
        self.given_agent: str | None = None
        binaries = folder / ".bin"
        binaries.mkdir(parents=True)
        self._write_programs(binaries)
        places = {
            name: str(folder / ".state" / name.lower())
            for name in ("XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
        }
        path = os.pathsep.join((str(binaries), str(Path(sys.executable).parent), os.environ["PATH"]))
        self.environment = {
            **os.environ,
            **SHORT,
            **places,
            "PATH": path,
            "HOME": str(folder),
            "COLUMNS": "200",
            "SLURM_ARRAY_TASK_ID": "1",
            "SLURM_CPUS_PER_TASK": "1",
            "PYTHONUNBUFFERED": "1",
            "FLEETNAS_PASSWORD": documented_world.PASSWORD,
            "SSL_CERT_FILE": str(folder / documented_world.SITE / "ca.pem"),
            **documented_world.attach_phone_and_accelerator(folder, binaries),
        }
        self.environment.pop("FLEETNAS_DATA", None)

    def _write_programs(self, binaries: Path) -> None:
        """Our programs, reading short budgets from the environment, and stand-ins for `sudo`, `ssh` and `systemctl`."""
        for name, module in (("fleetnas", "coordinator.cli"), ("fleetnas-agent", "agent.cli.main")):
            program = binaries / name
            program.write_text(_PROGRAM.format(python=sys.executable, module=module, name=name))
            program.chmod(0o755)
        for name, script in _STAND_INS.items():
            (binaries / name).write_text(f"#!/bin/sh\n{script}\n")
            (binaries / name).chmod(0o755)
        for folder in (Path("/opt/fleetnas/bin"), self.folder / "fleetnas" / "bin"):
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("fleetnas", "fleetnas-agent"):
                (folder / name).symlink_to(binaries / name)

    def start(self, kind: str, text: str, ready: re.Pattern[str]) -> tuple[bool, str]:
        """Start a program that serves, in the place of the one of its kind; returns whether it said that it does."""
        self.stop(kind)
        process = subprocess.Popen(
            ["bash", "-c", f"exec {text}"], cwd=self.folder, env=self.environment, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.servers[kind] = process
        said = ""
        assert process.stdout is not None
        with contextlib.suppress(waiting.StalledError), waiting.watching(process):
            for line in process.stdout:
                said += line
                if ready.search(line):
                    threading.Thread(target=process.stdout.read, daemon=True).start()
                    return True, said
        return False, said

    def stop(self, kind: str, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the program of a kind, if there is one."""
        if process := self.servers.pop(kind, None):
            process.send_signal(how)
            waiting.ended(process)

    def run(self, text: str) -> tuple[int, str]:
        """Run a command that ends; returns its exit code and output."""
        # A search that is resumed keeps the budget that it began with, and one without devices measures nothing.
        unused = SHORT if re.search("--resume|--offline", text) else ()
        environment = {name: value for name, value in self.environment.items() if name not in unused}
        answered = f"echo y | script -qec {shlex.quote(text)} /dev/null" if "runs delete" in text else text
        ended = waiting.run(
            ["bash", "-o", "pipefail", "-c", answered],
            beside=list(self.servers.values()),
            cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return ended.returncode, ended.stdout

    def play(self, command: Command) -> dict[str, object]:
        """Run one command; returns what the test asks about."""
        usual = USUAL if re.search("--(?:credentials|local|broker) ", command.text) else f"{USUAL} --broker localhost"
        text = re.sub(r" \.\.\.(?= |$)", f" {usual}", command.text)
        for pattern, shorter in _SHORTER:
            text = pattern.sub(shorter, text)
        record: dict[str, object] = {"line": command.line, "text": command.text}
        if assigned := _ASSIGNMENT.match(text):
            self.environment[assigned[1]] = " ".join(shlex.split(assigned[2]))
            return record | {"fine": True, "said": ""}
        self._connect_agent(text)
        self._prepare(text)
        for pattern, ready, kind in _SERVERS:
            if pattern.search(text):
                fine, said = self.start(kind, text, ready)
                return record | {"fine": fine, "said": said[-1500:]}
        code, said = self.run(text)
        if code == 0 and "broker init" in text:
            self._start_mosquitto(text)
        fine = code == 0 or (code == 1 and not re.search(r"(?m)^(?:error:|Traceback)", said))
        return record | {"fine": fine, "code": code, "said": said[-1500:]}

    def _prepare(self, text: str) -> None:
        """Bring about what a command takes as given at its moment."""
        if "mqtts://broker.example" in text or "--ca-file ca.pem" in text:
            site = self.folder / documented_world.SITE
            call("chown", "-R", "mosquitto:", site)
            self.folder.chmod(0o755)
            self._start_broker(site / "mosquitto.conf")
        if "fleetnas watch --" in text and "--store" not in text:
            way = "--broker localhost" if "--broker" in text else "--credentials authority/coordinator.credentials"
            self._begin_search(way)
        if "search --local --resume" in text:
            self._begin_search("--local")
            self.stop("search", signal.SIGINT)

    def _connect_agent(self, text: str) -> None:
        """Let the agent that the page takes as given answer at the broker that a command names."""
        named = AUTHORITY[-1] if ".credentials" in text else AGENT if "--broker" in text else self.given_agent
        if self.given_agent is None or self.given_agent == named or "fleetnas enroll" in text:
            return
        assert named is not None
        self.given_agent = named
        self._serve("agent", named, _SERVERS[1][1])

    def _begin_search(self, way: str) -> None:
        """Start a search that has measured something and is not over."""
        self._connect_agent(way)
        text = f"fleetnas search {USUAL} {way} --budget 12 --json"
        self._serve("search", text, re.compile('"event": ?"measurement"'))

    def serve(self, words: str = "") -> None:
        """Start what pages take for granted that say `words`: a broker and agents, a database, an authority."""
        (_, listens, _), (_, connected, _), *_ = _SERVERS
        evaluated = "predictor evaluate" in words
        # An evaluation takes measurements at undisturbed speed alone, which more threads than cores never have.
        agent = AGENT.replace("threads=4", "threads=1") if evaluated else AGENT
        agents = {"agent": agent}
        if re.search("pi5|--verify |predictor evaluate", words):
            agents["other"] = agent.replace("pi4", "pi5") + " --setting litert,threads=4" * ("fleetnas bench" in words)
        if "pi4*" in words:
            agents["other"] = AGENT.replace("pi4", "pi4-shelf")
        self._serve("broker", BROKER, listens)
        for kind, text in agents.items():
            self._serve(kind, text, connected)
        if evaluated:
            # Of what was measured before, few subnets are the same on both.
            for file in (Path(self.environment["XDG_DATA_HOME"]) / "fleetnas").glob("runs.sqlite*"):
                file.unlink()
            subnets = " ".join(["smallest", "largest", *(f"random:{seed}" for seed in range(22))])
            self.must(f"{MEASURED_BY_BOTH} {subnets} --min-time 0.2 --min-runs 20")
        if "postgresql" in words:
            self.servers["database"] = documented_world.start_postgresql()
            if "watch" in words:
                self.must(f"fleetnas search {USUAL} --broker localhost --store postgresql://fleetnas@db/fleetnas")
        if ".credentials" in words and "broker init" not in words:
            for text in AUTHORITY:
                record = self.play(Command("", 0, text))
                if not record["fine"]:
                    raise SystemExit(f"{text}: {record['said']}")
        if "fleetnas-agent run" not in words:
            self.given_agent = AUTHORITY[-1] if ".credentials" in words else AGENT
        if "install-service" in words:
            for parent in Path(sys.executable).resolve().parents:
                parent.chmod(parent.stat().st_mode | 0o555)

    def _serve(self, kind: str, text: str, ready: re.Pattern[str]) -> None:
        fine, said = self.start(kind, text, ready)
        if not fine:
            raise SystemExit(f"{text}: {said}")

    def must(self, text: str) -> None:
        """Run a command of the preparation, which has to succeed."""
        code, said = self.run(text)
        if code > 1 or "error:" in said:
            raise SystemExit(f"{text}: exit code {code}\n{said}")

    def _start_mosquitto(self, text: str) -> None:
        """Do what the page of brokers says with the folder that `fleetnas broker init` made."""
        made = self.folder / "authority" / "mosquitto"
        if "--install-at" in text:
            shutil.copytree(made, "/etc/mosquitto/fleetnas")
            made = Path("/etc/mosquitto/fleetnas")
        call("chown", "-R", "mosquitto:", made)
        for parent in made.parents:
            parent.chmod(parent.stat().st_mode | 0o111)
        self._start_broker(made / "mosquitto.conf")

    def _start_broker(self, configuration: Path) -> None:
        self.stop("mosquitto")
        broker = subprocess.Popen(["mosquitto", "-c", str(configuration)], stderr=subprocess.DEVNULL, text=True)
        self.servers["mosquitto"] = broker
        waiting.until(lambda: _answers(8883), broker, what="mosquitto answers")

    def furnish(self) -> None:
        """Make what pages take as given: images, bundles, model files, a finished search with its cards."""
        from rigs.striped_images import write_images, write_supernet
        from rigs.untrained_supernet import write_untrained

        for seed, (part, count) in enumerate((("train", 24), ("val", 8), ("test", 8), ("select", 8))):
            write_images(self.folder / "data" / part, count, seed=seed)
        write_untrained(self.folder / "digits.supernet")
        write_supernet(self.folder / "my.supernet")
        calibrated = "--images data/val --calibration-images data/train"
        self.must(f"fleetnas accuracy evaluate my.supernet {calibrated} -n 50 -o evaluated.jsonl")
        self.must("fleetnas accuracy fit evaluated.jsonl --bundle my.supernet")
        documented_world.write_files(self.folder)
        self.must(f"fleetnas evaluate my.supernet smallest {calibrated} --runtime litert -o model.tflite")
        for name in ("mine", "ofa", "mbv3", "tuned"):
            (self.folder / f"{name}.supernet").symlink_to("my.supernet")
        resolutions = "--resolutions 16,24 --width 0.25"
        self.must(f"fleetnas train data/train --val data/val {resolutions} --epochs 1 --batch-size 8 --out run")
        self.serve("pi5")
        self.must(
            "fleetnas search --broker localhost --supernet my.supernet --targets 10,20 --budget 8"
            " --calibration-images data/train --out results"
        )
        # The newest run knows more latencies than a predictor needs: the targets above are met by the first subnet.
        self.must(SEARCH_OF_BOTH)
        (self.folder / "winners").symlink_to("results")
        shutil.copy(self.folder / "evaluated.jsonl", self.folder / "evaluated-0.jsonl")
        (self.folder / "weights.json").write_text('{"pi4": 2}')
        architecture = documented_world.architecture_of(self.folder / "results")
        (self.folder / "architecture.json").write_text(architecture)


def starts_all_itself(words: str) -> bool:
    """Return whether a page starts its broker before it names one."""
    broker, named = re.search(r"fleetnas broker(?= --host|$)", words, re.MULTILINE), re.search("--broker", words)
    return broker is not None and (named is None or broker.start() < named.start())


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return False
    return True


def _furnish(folder: str) -> None:
    scene = Scene(Path("/home/reader"))
    scene.furnish()
    for kind in list(scene.servers):
        scene.stop(kind)
    for made_again in (".bin", "fleetnas"):
        shutil.rmtree(scene.folder / made_again)
    shutil.copytree(scene.folder, folder, symlinks=True, dirs_exist_ok=True)


def _play(page: str, folder: str) -> None:
    shutil.copytree(folder, "/home/reader", symlinks=True)
    scene = Scene(Path("/home/reader"))
    Path("/data").symlink_to("/home/reader/data")
    found = [command for command in commands(ROOT / page) if command.mark is None]
    words = "\n".join(command.text for command in found)
    if re.match(r".*--out run$", next((text for text in words.splitlines() if "fleetnas train" in text), "")):
        shutil.rmtree(scene.folder / "run")
    for made in re.findall(r"fleetnas finetune .* -o (\S+)", words):
        (scene.folder / made).unlink(missing_ok=True)
    if not starts_all_itself(words):
        scene.serve(words)
    elif "fleetnas-agent run" not in words:
        scene.given_agent = ""  # none yet: a line that the broker prints starts it
    for command in found:
        print(json.dumps(scene.play(command)), flush=True)  # noqa: T201
    for kind in list(scene.servers):
        scene.stop(kind)


if __name__ == "__main__":
    step, *more = sys.argv[1:]
    if step == "--enter":
        enter(__file__, *more)
    elif step == "--furnish":
        _furnish(*more)
    else:
        _play(*more)
