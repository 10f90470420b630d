"""A grid of runs: ``kd compare`` and the folder it writes."""
