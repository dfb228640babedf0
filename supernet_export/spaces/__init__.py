"""Design spaces: which architectures a supernet holds, vectorised."""
