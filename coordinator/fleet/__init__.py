"""Who is in the fleet, and whether they are still there."""
