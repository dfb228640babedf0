"""Training of elastic supernets; only this room and the reading of checkpoints need torch."""
