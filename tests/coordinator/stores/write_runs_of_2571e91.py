"""Wrote `runs_of_2571e91.sql`: a store with a run that ended and one that was interrupted, by the code of that commit.

To write it again, run in a checkout of 2571e91, with the package's dependencies installed:

    PYTHONPATH=.:tests/coordinator python write_runs_of_2571e91.py > runs_of_2571e91.sql
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from pathlib import Path

from coordinator.campaign.plan import CampaignPlan
from simulated_fleet import Simulation

from coordinator.store.store import MeasurementStore

#: The first target is faster than any subnet, the others are not.
PLAN = CampaignPlan(targets="0.2,1.6,2.4", budget=10, spread=6, wait_for=2, grace_s=5)


def main() -> None:
    """Simulate both runs and print their store as SQL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.sqlite"
        store = MeasurementStore.open(path)
        for run_id in ("ended", "interrupted"):
            fleet = Simulation(PLAN, store=store, run_id=run_id)
            for seed, name in enumerate(("pi4", "pi5")):
                fleet.add(name, seed=seed)
            fleet.begin()
            if run_id == "ended":
                fleet.run()
                fleet.campaign.finish()
            else:
                fleet.run(until=lambda: len(store.outcomes("interrupted")) >= 14)
                fleet.campaign.stop()
                store.set_run_status(run_id, "interrupted")
        store.close()
        with sqlite3.connect(path) as plain:
            sys.stdout.write("\n".join(plain.iterdump()) + "\n")


if __name__ == "__main__":
    main()
