"""What tests stand on: simulated fleets, real processes, brokers, faulty parts, and examples."""
