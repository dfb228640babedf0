"""One fleet-wide search: membership, planning, result intake, ends of device settings, and resuming."""
