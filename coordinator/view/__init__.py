"""Views that show the snapshots and events of a campaign."""
