"""`vtcframe sweep`: many runs from one file."""
