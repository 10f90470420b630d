"""Compares finished runs: means, paired differences, costs, and whether they are comparable."""
