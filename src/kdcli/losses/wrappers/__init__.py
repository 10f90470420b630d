"""Losses made of losses: sums, routes, weights, schedules, transforms of the teacher."""
