"""Runtimes behind one interface, which load and time models; each loads its library only when it is used."""
