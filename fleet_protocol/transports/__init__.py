"""One seam to the broker: MQTT, MQTT in a process of its own, and memory for tests."""
