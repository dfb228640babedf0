"""Who may join a fleet: the private authority, its certificates, and the broker's configuration."""
