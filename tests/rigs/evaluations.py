"""Evaluations of many subnets in processes of their own, their worker processes, and a Dask cluster on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from rigs import brokers, waiting

_FLEETNAS = "from fleetnas.coordinator.cli import main; main()"


def write_images(folder: Path, classes: int = 10, count: int = 4, seed: int = 0) -> Path:
    """Write grey noise: `count` images of 16 x 16 pixels for each class, named by its number."""
    rng = np.random.default_rng(seed)
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


def start(bundle: Path, output: Path, *options: object) -> subprocess.Popen[str]:
    """Start `fleetnas accuracy evaluate`; its output is piped."""
    words = ["accuracy", "evaluate", bundle, "-o", output, *options]
    return subprocess.Popen(
        [sys.executable, "-c", _FLEETNAS, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for an evaluation that ends well; return its standard output."""
    out, err = waiting.outputs(process)
    assert process.returncode == 0, err
    return out


def lines(output: Path) -> list[dict[str, Any]]:
    """The whole lines of subnets that a file has, without the seconds that each took, in the order of the list."""
    if not output.exists():
        return []
    content = output.read_text()
    found = [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()[1:]]
    for each in found:
        each.pop("seconds", None)
    return sorted(found, key=lambda each: int(each["index"]))


def workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Worker processes of an evaluation that live."""
    found = []
    for child in waiting.tree(process.pid)[1:]:
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
    return found


@dataclass(frozen=True)
class DaskCluster:
    """A scheduler's address and process, and the parents of the worker processes."""

    address: str
    scheduler: subprocess.Popen[Any]
    nannies: list[subprocess.Popen[Any]]


@contextlib.contextmanager
def dask_cluster(folder: Path, count: int = 2, paths: Sequence[Path] = ()) -> Iterator[DaskCluster]:
    """A Dask scheduler and `count` workers of one thread.

    A worker's own child computes; the parent, Dask's nanny, starts it again. `paths` are searched first for packages.
    """
    port = brokers.free_port()
    address = f"tcp://127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if paths:
        environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = ["worker", address, "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    with contextlib.ExitStack() as started:

        def run(name: str, words: list[str]) -> Any:
            log = started.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *words],
                cwd=folder,  # `-m` looks for packages there first, and a checkout holds metadata of its own
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            started.callback(end, process)
            return process

        cluster = DaskCluster(
            address, run("scheduler", scheduler), [run(f"worker-{number}", worker) for number in range(count)]
        )
        brokers.until_listening(port, cluster.scheduler)
        yield cluster


def end(process: subprocess.Popen[Any]) -> None:
    """Kill a process with its descendants."""
    for member in waiting.tree(process.pid):
        with contextlib.suppress(psutil.Error):
            member.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
