"""Executors of cells: this process, child processes, Slurm, Ray."""
