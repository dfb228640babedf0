"""`python -m fleetnas`: the command line, also for `torchrun -m fleetnas train` and `accelerate launch -m`."""

from __future__ import annotations

from fleetnas.coordinator.cli import main

if __name__ == "__main__":
    main()
