"""Simulated campaigns and how each of them ends, as JSON on standard output.

`python tests/rigs/recorded_winners.py > tests/rigs/recorded_winners.json` records them anew, after a
change that is meant to change what a search finds. Run it as `arithmetic()` says: rounding differs between processors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

#: Instruction sets with which numpy rounds differently than with AVX2.
_NOT_USED = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR"


def arithmetic() -> dict[str, str]:
    """Environment of a process whose results do not depend on which x86-64 processor with AVX2 it runs on."""
    return {
        **os.environ,
        "OPENBLAS_CORETYPE": "Haswell",
        "OPENBLAS_NUM_THREADS": "1",
        "NPY_DISABLE_CPU_FEATURES": _NOT_USED,
    }


def campaigns() -> Iterator[tuple[str, dict[str, object]]]:
    """Name and outcome of each campaign."""
    from fleetnas.coordinator.records.bounds import Bounds
    from fleetnas.coordinator.records.plan import CampaignPlan
    from fleetnas.fleet_protocol.messages import RuntimeSetting
    from rigs.simulated_fleet import Simulation

    plans = {
        "automatic": CampaignPlan(targets="auto:4", budget=30),
        "explicit": CampaignPlan(targets="0.6,1,1.6,2.4", budget=24),
        "top-down": CampaignPlan(targets="auto:3", budget=20, strategy="top-down"),
        "bounded": CampaignPlan(targets="auto:3", budget=20, bounds=Bounds(macs=9e5)),
    }
    settings = (RuntimeSetting(), RuntimeSetting(threads=2))
    for name, plan in plans.items():
        for seed in range(2):
            fleet = Simulation(plan.model_copy(update={"seed": seed, "wait_for": 2}))
            fleet.add("pi", seed=10 * seed, settings=settings)
            fleet.add("phone", seed=10 * seed + 5, noise=0.03)
            fleet.begin()
            fleet.run()
            fleet.campaign.finish()
            yield f"{name}, seed {seed}", outcome(fleet)


def outcome(fleet: object) -> dict[str, object]:
    """The fate of every target, and how many measurements it took."""
    store = fleet.store  # type: ignore[attr-defined]
    winners: dict[str, list[list[object]]] = {}
    for row in store.winners("run-1"):
        fingerprint = row.architecture.fingerprint if row.architecture is not None else None
        label = f"{row.device}/{row.setting_label}"
        winners.setdefault(label, []).append([float(f"{row.target_ms:.9g}"), row.met, fingerprint])
    return {"measurements": len(store.outcomes("run-1")), "winners": winners}


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    lines = [f" {json.dumps(name)}: {json.dumps(found)}" for name, found in campaigns()]
    sys.stdout.write("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
