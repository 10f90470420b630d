"""Files of rows: looked at, scored, ranked and cut into parts."""
