"""The console script `lightning`."""
