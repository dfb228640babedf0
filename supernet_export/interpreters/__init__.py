"""Runtimes that execute model files on this machine, for calibration and evaluation."""
