"""Files that survive a kill: atomic writes, digests, locks, and the tree of a run folder."""
