"""Run the commands of one page as a reader would, on a machine that is thrown away afterwards.

    python tests/rigs/documented_scene.py docs/search.md

`run_page` starts this file in namespaces of its own (network, mounts, processes) on an overlay of the whole file
system, so that `/etc`, `/opt` and `/data` may be written, names like `fleet.example` lead to this machine, and nothing
outlives it. It prints one JSON object per command. Budgets and times are made small by the environment; the words of a
command are not changed, except that `...` stands for the options of a usual search and that half an hour is three
seconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from rigs import waiting  # noqa: E402
from rigs.documented_commands import Command, commands  # noqa: E402

#: Names and addresses of the documents; all of them are this machine here.
HOSTS = "localhost HOST fleet.example broker.example db db.example pi4 pi5"
ADDRESSES = ("192.168.1.10",)
#: A usual search, in the place of `...`.
USUAL = "--supernet digits.supernet --targets auto:2"
#: Short runs: click reads an option that is not given from FLEETNAS_COMMAND_OPTION where it is told this prefix.
SHORT = {
    "FLEETNAS_SEARCH_BUDGET": "3",
    "FLEETNAS_SEARCH_MIN_TIME": "0.02",
    "FLEETNAS_SEARCH_MIN_RUNS": "5",
    "FLEETNAS_SEARCH_WARMUP": "0.02",
    "FLEETNAS_SEARCH_FIXED_PROTOCOL": "1",
    "FLEETNAS_SEARCH_JOIN": "20",
    "FLEETNAS_MEASURE_MIN_TIME": "0.02",
    "FLEETNAS_MEASURE_MIN_RUNS": "5",
    "FLEETNAS_MEASURE_WARMUP": "0.02",
}
BROKER = "fleetnas broker --host 0.0.0.0"
AGENT = "fleetnas-agent run --broker localhost --name pi4 --setting onnxruntime,threads=4"
#: Where the prepared folder is seen inside.
_GIVEN = Path("/srv/given")
#: Programs that serve until they are stopped, and the words that say that they do.
_SERVERS = (
    (re.compile(r"fleetnas broker(?= --host| --port|$)"), re.compile("broker listens"), "broker"),
    (re.compile(r"fleetnas-agent run"), re.compile("INFO connected to the broker"), "agent"),
)
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
    _inside(folder, "--furnish", str(_GIVEN))


def run_page(page: str, given: Path) -> list[dict[str, object]]:
    """Run a page in namespaces of its own, from a copy of what `furnish` prepared; returns one record per command."""
    return [json.loads(line) for line in _inside(given, "--play", page, str(_GIVEN)).splitlines()]


def _inside(folder: Path, *step: str) -> str:
    enter = [sys.executable, __file__, "--enter", str(folder), *step]
    run = waiting.run(["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", *enter])
    if run.returncode:
        raise RuntimeError(f"{' '.join(step)}: {run.stderr[-3000:]}")
    return run.stdout


def can_enter() -> str | None:
    """Return why such namespaces cannot be made here, or None."""
    if os.geteuid() != 0:
        return "needs root, for namespaces and an overlay"
    script = (
        "mount -t tmpfs t /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
        "mount -t overlay o -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w /mnt/r"
    )
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "sh", "-c", f"{script} && ip link set lo up"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return None if tried.returncode == 0 else f"no overlay in a namespace: {tried.stderr.strip()[-200:]}"


def _enter(folder: str, *step: str) -> None:
    """Change the root to an overlay of it, give the machine its names, and go on there with `step`."""
    base = Path("/mnt")
    _call("mount", "-t", "tmpfs", "tmpfs", base)
    for name in ("up", "work", "root"):
        (base / name).mkdir()
    root = base / "root"
    _call("mount", "-t", "overlay", "overlay", "-o", f"lowerdir=/,upperdir={base}/up,workdir={base}/work", root)
    _call("mount", "-t", "proc", "proc", root / "proc")
    _call("mount", "--rbind", "/dev", root / "dev")
    _call("mount", "--rbind", "/sys", root / "sys")
    given = root / _GIVEN.relative_to("/")
    given.mkdir(parents=True)
    _call("mount", "--bind", folder, given)
    for place in ("tmp", "run", "var/tmp"):
        _call("mount", "-t", "tmpfs", "tmpfs", root / place)
    _call("ip", "link", "set", "lo", "up")
    for address in ADDRESSES:
        _call("ip", "address", "add", f"{address}/32", "dev", "lo")
    (root / "etc" / "hosts").write_text(f"127.0.0.1 {HOSTS}\n::1 localhost\n")
    os.chroot(root)
    os.chdir("/")
    os.execv(sys.executable, [sys.executable, __file__, *step])


def _call(*words: object) -> None:
    subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)


class Scene:
    """The reader's folder, with what the pages take as given, and the programs that serve."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: dict[str, subprocess.Popen[str]] = {}
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
        }
        self.environment.pop("FLEETNAS_DATA", None)

    def _write_programs(self, binaries: Path) -> None:
        """Our programs, reading short budgets from the environment, and `sudo`, which is not needed as root."""
        for name, module in (("fleetnas", "coordinator.cli"), ("fleetnas-agent", "agent.cli.main")):
            program = binaries / name
            program.write_text(_PROGRAM.format(python=sys.executable, module=module, name=name))
            program.chmod(0o755)
        sudo = binaries / "sudo"
        sudo.write_text('#!/bin/sh\nexec "$@"\n')
        sudo.chmod(0o755)
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
        for line in process.stdout:
            said += line
            if ready.search(line):
                threading.Thread(target=process.stdout.read, daemon=True).start()
                return True, said
        return False, said

    def stop(self, kind: str) -> None:
        """Stop the program of a kind, if there is one."""
        if process := self.servers.pop(kind, None):
            process.send_signal(signal.SIGTERM)
            process.wait()

    def run(self, text: str) -> tuple[int, str]:
        """Run a command that ends; returns its exit code and output."""
        ended = subprocess.run(
            ["bash", "-c", text], cwd=self.folder, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return ended.returncode, ended.stdout

    def play(self, command: Command) -> dict[str, object]:
        """Run one command; returns what the test asks about."""
        usual = USUAL if re.search("--(?:credentials|local|broker) ", command.text) else f"{USUAL} --broker localhost"
        text = re.sub(r" \.\.\.(?= |$)", f" {usual}", command.text)
        text = text.replace("--sustained 30m", "--sustained 3s --window 1")
        for pattern, ready, kind in _SERVERS:
            if pattern.search(text):
                fine, said = self.start(kind, text, ready)
                return {"line": command.line, "text": command.text, "fine": fine, "said": said[-1500:]}
        code, said = self.run(text)
        if code == 0 and "broker init" in text:
            self._start_mosquitto(text)
        fine = code == 0 or (code == 1 and not said.startswith("error:") and "\nerror:" not in said)
        return {"line": command.line, "text": command.text, "fine": fine, "code": code, "said": said[-1500:]}

    def serve(self) -> None:
        """Start a broker and an agent, as pages that begin with a search take for granted."""
        (_, listens, _), (_, connected, _) = _SERVERS
        other = AGENT.replace("pi4", "pi5")
        for kind, text, ready in (
            ("broker", BROKER, listens),
            ("agent", AGENT, connected),
            ("other", other, connected),
        ):
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
        _call("chown", "-R", "mosquitto:", made)
        for parent in made.parents:
            parent.chmod(parent.stat().st_mode | 0o111)
        self.stop("mosquitto")
        self.servers["mosquitto"] = subprocess.Popen(
            ["mosquitto", "-c", str(made / "mosquitto.conf")], stderr=subprocess.DEVNULL, text=True
        )
        waiting.until(lambda: _answers("localhost", 8883), self.servers["mosquitto"], what="mosquitto answers")

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
        self.must(f"fleetnas evaluate my.supernet smallest {calibrated} -o model.onnx")
        self.must(f"fleetnas evaluate my.supernet smallest {calibrated} --runtime litert -o model.tflite")
        for name in ("mine", "ofa", "mbv3", "X", "tuned", "mine-20ms"):
            (self.folder / f"{name}.supernet").symlink_to("my.supernet")
        (self.folder / "run").mkdir()
        (self.folder / "run" / "supernet.supernet").symlink_to("../my.supernet")
        self.serve()
        self.must(
            "fleetnas search --broker localhost --supernet my.supernet --targets 10,20"
            " --calibration-images data/train --out results"
        )
        (self.folder / "winners").symlink_to("results")
        shutil.copy(self.folder / "evaluated.jsonl", self.folder / "evaluated-1.jsonl")
        (self.folder / "weights.json").write_text('{"pi4": 2}')
        (self.folder / "architecture.json").write_text(
            json.dumps(json.loads(next((self.folder / "results").glob("*/*/*ms.json")).read_text())["architecture"])
        )


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def _furnish(folder: str) -> None:
    scene = Scene(Path("/home/reader"))
    scene.furnish()
    for kind in list(scene.servers):
        scene.stop(kind)
    shutil.copytree(
        "/home/reader", folder, symlinks=True, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".bin", "fleetnas")
    )


def _play(page: str, folder: str) -> None:
    shutil.copytree(folder, "/home/reader", symlinks=True)
    scene = Scene(Path("/home/reader"))
    Path("/data").symlink_to("/home/reader/data")
    scene.serve()
    for command in commands(ROOT / page):
        if command.mark is None:
            print(json.dumps(scene.play(command)), flush=True)  # noqa: T201
    for kind in list(scene.servers):
        scene.stop(kind)


if __name__ == "__main__":
    step, *more = sys.argv[1:]
    {"--enter": _enter, "--furnish": _furnish, "--play": _play}[step](*more)
