"""The agent that measures subnets on a device."""
