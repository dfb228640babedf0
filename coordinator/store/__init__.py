"""Everything a campaign learns, written as it arrives, so that any run can be resumed, shown and exported."""
