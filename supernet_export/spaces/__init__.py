"""Design spaces: the architectures of a supernet, vectorised."""
