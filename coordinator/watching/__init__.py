"""Looking at a search from elsewhere: what it tells, who listens, and metrics for monitoring."""
