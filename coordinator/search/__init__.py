"""The search: the most accurate subnets within latency targets, from an accuracy and a latency model."""
