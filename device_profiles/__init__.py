"""What a device is: the profile schema, and one data file per known device."""
