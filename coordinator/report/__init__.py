"""What the user takes home: the outcome of a campaign as data, files and a page."""
