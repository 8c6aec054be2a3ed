"""`vtcframe bench`: the cost and the speedup of pruning."""
