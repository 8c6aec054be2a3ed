"""`vtcframe bench`: what pruning costs and what it saves."""
