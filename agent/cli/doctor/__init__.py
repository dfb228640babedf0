"""Checks of this device and its way to the broker, each with the command that fixes the trouble it finds."""
