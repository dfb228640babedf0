"""The agent as a systemd service: its unit, its configuration, its installation and removal."""
