"""Models in the formats that other programs run: written, read back, and what rounding did to the weights."""
