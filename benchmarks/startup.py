"""How long the command lines take to start, as multiples of `python -c 'import typer'` in the same run.

Each command is run `--repeats` times, all of them in turns with the import, so that a change of the machine's speed
meets all alike; a figure is the median of its times over the median of the import's. The store of `fleetnas runs` does
not exist, and is empty in the second case.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from figures import Figures, parser

_BIN = Path(sys.executable).parent
_FLEETNAS, _AGENT = str(_BIN / "fleetnas"), str(_BIN / "fleetnas-agent")
_IMPORT = (sys.executable, "-c", "import typer")
_MAKE_STORE = (
    "import sys; from fleetnas.coordinator.store.store import MeasurementStore as S; S.open(sys.argv[1]).close()"
)
#: Most multiples of the import: of the coordinator's program, and of the agent's.
_BAR, _AGENT_BAR = 2.5, 1.5


def cases(folder: Path) -> dict[str, tuple[Sequence[str], Mapping[str, str], float]]:
    """The commands by the names of their figures: words, environment, bar."""
    words = {"COMP_WORDS": "fleetnas search --st", "COMP_CWORD": "2", "_FLEETNAS_COMPLETE": "complete_bash"}
    commands = {"COMP_WORDS": "fleetnas s", "COMP_CWORD": "1", "_FLEETNAS_COMPLETE": "complete_bash"}
    store = str(folder / "empty.sqlite")
    subprocess.run((sys.executable, "-c", _MAKE_STORE, store), check=True)
    return {
        "help": ((_FLEETNAS, "--help"), {}, _BAR),
        "search_help": ((_FLEETNAS, "search", "--help"), {}, _BAR),
        "completion_of_commands": ((_FLEETNAS,), commands, _BAR),
        "completion_of_options": ((_FLEETNAS,), words, _BAR),
        "runs_without_a_store": ((_FLEETNAS, "runs"), {"XDG_DATA_HOME": str(folder / "none")}, _BAR),
        "runs_of_an_empty_store": ((_FLEETNAS, "runs", "--store", store), {}, _BAR),
        "agent_help": ((_AGENT, "--help"), {}, _AGENT_BAR),
    }


def seconds(words: Sequence[str], variables: Mapping[str, str]) -> float:
    """The time of one run of a program, its start and end included."""
    began_s = time.perf_counter()
    subprocess.run(words, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; the exit status is 0 if all bars are met."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=20, help="runs of each command (default: %(default)s)")
    chosen = options.parse_args(arguments)
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        found = cases(Path(folder))
        times: dict[str, list[float]] = {name: [] for name in ("import", *found)}
        for repeat in range(chosen.repeats + 1):
            taken = {"import": seconds(_IMPORT, {})}
            taken |= {name: seconds(words, variables) for name, (words, variables, _) in found.items()}
            if repeat:  # the first one compiles and reads from the disk
                for name, each in taken.items():
                    times[name].append(each)
    base = statistics.median(times["import"])
    figures.add("import_typer_ms", 1000 * base)
    for name, (_, _, bar) in found.items():
        figures.add(f"{name}_over_import", statistics.median(times[name]) / base, f"<= {bar}")
    return figures.report(as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
