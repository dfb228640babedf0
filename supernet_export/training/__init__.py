"""Training elastic supernets: the only part, with reading checkpoints, that needs torch."""
