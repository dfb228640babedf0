"""Writing of model files from the intermediate graph."""
