"""Pure ask/tell search of one device setting: initial design, candidates, verification, target solvers."""
