"""Ask/tell search of one device setting, without I/O."""
