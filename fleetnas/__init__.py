"""On-device architecture search for fleets of edge devices over once-for-all supernets."""
