"""`fleetnas search`: one command for a fleet, for this device alone, and offline."""
