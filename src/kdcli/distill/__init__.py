"""One training run, from checked settings to a saved student: ``kd distill``."""
