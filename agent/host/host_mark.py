"""Mark of this start of the machine: agents with the same mark share its processor, and measure in turn."""

from __future__ import annotations

import hashlib
from pathlib import Path


def host_mark(root: Path = Path("/")) -> str:
    """Return 16 hexadecimal digits, the same for all agents and containers of this machine until it restarts.

    They come from a random number that the kernel draws at its start, and tell nothing of the machine. Empty where the
    system has none.
    """
    try:
        drawn = (root / "proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return hashlib.sha256(f"fleetnas host {drawn}".encode()).hexdigest()[:16] if drawn else ""
