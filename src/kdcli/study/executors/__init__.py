"""Where the cells of a comparison run: this process, its children, Slurm, Ray."""
