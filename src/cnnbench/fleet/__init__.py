"""Many machines through a scheduler: one plan of runs, brought to its end whatever dies meanwhile."""
