"""The runtimes that execute model files on this machine."""
