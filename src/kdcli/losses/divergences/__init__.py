"""Divergences between two distributions, token by token, with gradients in closed form."""
