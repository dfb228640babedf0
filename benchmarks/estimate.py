"""How well a dry run predicts the time of a search: real agents on this machine, five tries, on a quiet machine.

    python benchmarks/estimate.py --json

Three agents and a broker run on this machine. Each try asks `fleetnas search --dry-run`, then runs that search. The
search before the first try has an empty store, so that the protocol alone tells its seconds; it cannot tell that the
agents share a host and measure in turn. The five tries know the runs before them. The bar: in every try the estimate
is within 40 % of what the search took. The last search chooses a portfolio of two models, all verified.

`--simulated` follows 40 simulated campaigns instead, and tells how often the interval in their middle holds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_BAR = 0.4


def fleetnas(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; its output is returned."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", "from fleetnas.coordinator.cli import main; main()", *arguments]
    with (folder / "search.log").open("a") as log:
        return subprocess.run(
            line, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, check=False, timeout=1800
        )


def one_try(folder: Path, broker: str, agents: int, targets: str, budget: int, models: int | None) -> dict[str, Any]:
    """Estimate a search, run it, and compare."""
    common = ("search", "--broker", broker, "--store", str(folder / "runs.sqlite"), "--json")
    plan = ("--supernet", str(folder / "digits.supernet"), "--targets", targets, "--budget", str(budget))
    before = json.loads(fleetnas(*common, *plan, "--wait-for", str(agents), "--dry-run", folder=folder).stdout)
    portfolio = ("--models", str(models)) if models is not None else ()
    began_s = time.monotonic()
    done = fleetnas(*common, *plan, "--wait-for", str(agents), "--out", str(folder / "out"), *portfolio, folder=folder)
    took_s = time.monotonic() - began_s
    told = [json.loads(line) for line in done.stdout.splitlines()]
    # What --models adds is not part of the search.
    end = next(each for each in told if each["event"] == "campaign_finished")
    start = next(each for each in told if each["event"] == "campaign_started")
    search_s = end["elapsed_s"] if models is not None else took_s
    middle = [each for each in told if each["event"] == "progress" and each["at_s"] - start["at_s"] >= search_s / 2]
    left_s = end["at_s"] - middle[0]["at_s"] if middle else None
    return {
        "estimate_s": round(before["expected_s"], 1),
        "least_s": round(before["least_s"], 1),
        "most_s": round(before["most_s"], 1),
        "known_measurements": sum(each["known_measurements"] for each in before["settings"]),
        "took_s": round(search_s, 1),
        "error_percent": round(100.0 * (before["expected_s"] / search_s - 1.0), 1),
        "within_interval": before["least_s"] <= search_s <= before["most_s"],
        "within_bar": abs(before["expected_s"] / search_s - 1.0) <= _BAR,
        "middle_covered": None if left_s is None else middle[0]["least_left_s"] <= left_s <= middle[0]["most_left_s"],
        "targets_met": f"{end['targets_met']} of {end['targets']}",
        "portfolio_verified": None
        if models is None
        else sum(each["known_by"] == "verified" for each in told[-1].get("served", ())),
    }


def simulated(campaigns: int) -> dict[str, Any]:
    """Tell how often the interval in the middle of a simulated campaign holds, and the median error there."""
    sys.path.insert(0, str(ROOT / "tests"))
    import statistics

    from rigs.timed_fleet import followed

    covered, errors = 0, []
    for seed in range(campaigns):
        told = followed(seed)
        began_s, end_s = told[0][0], told[-1][0]
        at_s, found = min(told, key=lambda each: abs(each[0] - (began_s + end_s) / 2))
        covered += found.least_left_s <= end_s - at_s <= found.most_left_s
        errors.append(abs(found.left_s / (end_s - at_s) - 1.0))
    return {
        "campaigns": campaigns,
        "covered_percent": 100.0 * covered / campaigns,
        "median_error_percent": round(100.0 * statistics.median(errors), 1),
    }


def main() -> None:
    """Run the tries and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--agents", type=int, default=3)
    parser.add_argument("--targets", default="auto:4")
    parser.add_argument("--budget", type=int, default=20)
    parser.add_argument("--simulated", action="store_true")
    arguments = parser.parse_args()
    if arguments.simulated:
        print(json.dumps(simulated(40)))
        return
    from fleetnas.coordinator.app.demo import agents
    from fleetnas.coordinator.app.embedded_broker import EmbeddedBroker
    from fleetnas.supernet_export.export import export_digits

    names = [(f"board-{number}", ("--threads", "1")) for number in range(arguments.agents)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_digits(folder / "digits.supernet")
        tries = []
        with EmbeddedBroker(port=0) as broker, agents(broker.address, folder, names):
            for number in range(arguments.tries + 1):
                models = 2 if number == arguments.tries else None
                found = one_try(
                    folder, str(broker.address), arguments.agents, arguments.targets, arguments.budget, models
                )
                tries.append(found)
                print(json.dumps(found), file=sys.stderr, flush=True)
    by_protocol, *tries = tries
    within = sum(found["within_bar"] for found in tries)
    report = {"by_protocol": by_protocol, "tries": tries, "within_bar": within, "met": within == len(tries)}
    print(json.dumps(report) if arguments.json else f"{within} of {len(tries)} estimates within {100 * _BAR:.0f} %")


if __name__ == "__main__":
    main()
