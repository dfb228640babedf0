"""Runtimes behind one interface; each loads its library only when it is used, in the measuring child."""
