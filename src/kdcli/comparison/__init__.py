"""What finished runs say together: means, paired differences, costs, and whether they may be compared."""
