"""What the user watches: an immutable snapshot of the campaign, its events, and the views that show them."""
