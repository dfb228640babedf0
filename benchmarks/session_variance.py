"""How much sessions and processes of one model file differ, and which change of a session removes part of it.

For each model, `--processes` processes are alive at the same time, and one more that runs the reference: the same model
in a session that is kept throughout. In each of `--sessions` stretches every process makes a fresh session, then each
is measured `--repeats` times, in random order, in short turns between turns of the reference, then the sessions are
closed. A measurement is the logarithm of the ratio at low quantiles, as an agent's is. `variance_components.py` takes
its variance apart. One more process keeps its session throughout: what seems to differ between its stretches is the
method's own error. Where this runs as the superuser, it also tells how many of a session's pages of memory are those of
the session before in the same process.

`--clock cpu` counts processor time, for a machine that other programs use too.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from figures import Figures, parser
from rigs.supernets import random_bundle
from variance_components import Component, components

from fleetnas.agent.measuring.undisturbed import pooled_quantiles
from fleetnas.fleet_protocol.messages import RuntimeSetting
from fleetnas.supernet_export.model_file import build_model
from fleetnas.supernet_export.spaces.registry import make_space

SPACE = make_space("ofa-mbv3")
QUANTILES = (0.1, 0.2, 0.3, 0.4)
REFERENCE_TURN_S, SUBJECT_TURN_S, ROUNDS = 0.03, 0.06, 5
_ADDR_NO_RANDOMIZE = 0x0040000


@dataclass(frozen=True)
class Change:
    """One way to make sessions other than as the agent makes them."""

    runtimes: tuple[str, ...] = ("onnxruntime", "litert")
    #: For `session_child.py`.
    option: str = ""
    environment: tuple[tuple[str, str], ...] = ()
    fixed_addresses: bool = False


_MALLOC = "GLIBC_TUNABLES"
CHANGES = {
    "as_measured": Change(),
    "kept_memory": Change(option="kept_memory"),
    "no_arena": Change(("onnxruntime",), "no_arena"),
    "no_pattern": Change(("onnxruntime",), "no_pattern"),
    "no_prepacking": Change(("onnxruntime",), "no_prepacking"),
    "device_allocator": Change(("onnxruntime",), "device_allocator"),
    "bound_buffers": Change(("onnxruntime",), "bound_buffers"),
    "fixed_addresses": Change(fixed_addresses=True),
    "huge_pages": Change(environment=((_MALLOC, "glibc.malloc.hugetlb=1"),)),
    "heap_memory": Change(environment=((_MALLOC, "glibc.malloc.mmap_threshold=1073741824"),)),
    "one_core": Change(option="one_core"),
}


def _fix_addresses() -> None:
    ctypes.CDLL(None).personality(_ADDR_NO_RANDOMIZE)


class Child:
    """A process that makes and times sessions of one model file."""

    def __init__(self, model: Path, runtime: str, change: Change, clock: str) -> None:
        script = Path(__file__).with_name("session_child.py")
        options = ["--change", change.option] if change.option else []
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(model), runtime, "--clock", clock, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **dict(change.environment)},
            start_new_session=True,  # as the agent's child: some kernels share the processor among such sessions
            preexec_fn=_fix_addresses if change.fixed_addresses else None,
        )

    def command(self, **command: object) -> tuple[float, ...]:
        """Execute one command; times in ms, if it gives any."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a child of the study ended with code {self._process.wait()}")
        return tuple(json.loads(line))

    def turn(self, seconds: float) -> tuple[float, ...]:
        """Run the session for so long; ms per inference."""
        return self.command(op="turn", seconds=seconds)

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def children(count: int, model: Path, runtime: str, change: Change, clock: str) -> Iterator[list[Child]]:
    """Start processes, which end with the block."""
    with ExitStack() as stack:
        found = []
        for _ in range(count):
            child = Child(model, runtime, change, clock)
            stack.callback(child.end)
            found.append(child)
        yield found


def log_ratio(subject: Child, reference: Child) -> float:
    """One measurement: the subject over the reference, logarithm."""
    ours, theirs = [], [reference.turn(REFERENCE_TURN_S)]
    for _ in range(ROUNDS):
        ours.append(subject.turn(SUBJECT_TURN_S))
        theirs.append(reference.turn(REFERENCE_TURN_S))
    difference = np.log(pooled_quantiles(ours, QUANTILES)) - np.log(pooled_quantiles(theirs, QUANTILES))
    return float(difference.mean())


@dataclass(frozen=True)
class Study:
    """Log-ratios of one model: (processes, sessions, repeats), (sessions, repeats) of a kept session."""

    renewed: NDArray[np.float64]
    kept: NDArray[np.float64]
    #: Share of a session's pages that were the same in the session before, per process and later session.
    same_pages: list[float]


@dataclass(frozen=True)
class Design:
    """Size of the study of one model file."""

    processes: int
    sessions: int
    repeats: int
    clock: str


def study(model: Path, runtime: str, change: Change, design: Design, rng: np.random.Generator) -> Study:
    """Measure the sessions of one model."""
    same_pages: list[float] = []
    found = np.zeros((design.processes + 1, design.sessions, design.repeats))
    everyone = children(design.processes + 2, model, runtime, change, design.clock)
    with everyone as (reference, kept, *renewed):
        for child in (reference, kept):
            child.command(op="load")
        measured = [*renewed, kept]
        for session in range(design.sessions):
            for child in renewed:
                child.command(op="load")
            order = rng.permuted(np.tile(np.arange(len(measured)), (design.repeats, 1)), axis=1)
            for repeat, row in enumerate(order):
                for index in row:
                    found[index, session, repeat] = log_ratio(measured[index], reference)
            for child in renewed:
                same_pages.extend(child.command(op="pages"))
                child.command(op="close")
    return Study(found[:-1], found[-1], same_pages)


def add(figures: Figures, name: str, component: Component) -> None:
    figures.add(name, 100 * component.deviation)
    figures.add(f"{name}_low", 100 * component.low)
    figures.add(f"{name}_high", 100 * component.high)


def kept_percent(renewed: NDArray[np.float64], kept: NDArray[np.float64]) -> float:
    """Deviation between stretches of sessions that are kept, beyond that of their repeats; (subnets, ...)."""
    repeats = kept.shape[-1]
    means = kept.mean(axis=-1) - renewed.mean(axis=(1, 3))
    within = kept.var(axis=-1, ddof=1).mean() / repeats
    return 100 * float(np.sqrt(max(0.0, means.var(axis=-1, ddof=1).mean() - within)))


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--subnets", type=int, default=3, help="of three, two are the smallest and the largest")
    arguments.add_argument("--processes", type=int, default=5)
    arguments.add_argument("--sessions", type=int, default=4)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--runtimes", nargs="+", default=["onnxruntime", "litert"])
    arguments.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES))
    arguments.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments.add_argument("--raw", type=Path, help="file for the log-ratios, numpy .npz")
    given = arguments.parse_args()
    if min(given.processes, given.sessions, given.repeats) < 2:
        arguments.error("variances need at least 2 processes, 2 sessions and 2 repeats")
    design = Design(given.processes, given.sessions, given.repeats, given.clock)
    sampled = SPACE.sample(max(1, given.subnets), np.random.default_rng(0))
    genomes = np.concatenate([sampled[:1], SPACE.smallest(), SPACE.largest(), sampled[1:]])[: given.subnets]
    architectures = SPACE.decode(genomes)
    figures, rng, raw = Figures(), np.random.default_rng(1), {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = random_bundle(Path(folder) / "ofa.supernet", SPACE, classes=1000, channels=3)
        for runtime in given.runtimes:
            setting = RuntimeSetting.model_validate({"runtime": runtime})
            files = [Path(folder, f"{runtime}-{index}.model") for index in range(len(architectures))]
            for file, architecture in zip(files, architectures, strict=True):
                file.write_bytes(build_model(bundle, architecture, None, setting))
            for name in given.changes:
                if runtime not in CHANGES[name].runtimes:
                    continue
                found = [study(file, runtime, CHANGES[name], design, rng) for file in files]
                renewed, kept = np.array([each.renewed for each in found]), np.array([each.kept for each in found])
                raw[f"{runtime}_{name}"], raw[f"{runtime}_{name}_kept"] = renewed, kept
                parts = components(renewed, rng)
                add(figures, f"between_processes_percent_{runtime}_{name}", parts.processes)
                add(figures, f"between_sessions_percent_{runtime}_{name}", parts.sessions)
                figures.add(f"within_session_percent_{runtime}_{name}", 100 * parts.within.deviation)
                figures.add(f"kept_session_percent_{runtime}_{name}", kept_percent(renewed, kept))
                pages = [share for each in found for share in each.same_pages]
                if pages:
                    figures.add(f"same_pages_percent_{runtime}_{name}", 100 * float(np.mean(pages)))
                if given.raw is not None:
                    np.savez(given.raw, **raw)
    return figures.report(as_json=given.json)


if __name__ == "__main__":
    raise SystemExit(main())
