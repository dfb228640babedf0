"""What the device is and how it is: board, processor, sensors, power, battery."""
