"""Facts and state of the device: board, processor, sensors, power, battery, limits, processes."""
