"""Scores: numbers of a training row by which rows are ranked, kept and weighed."""
