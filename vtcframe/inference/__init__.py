"""Loading checkpoints, and the one way to run a plan on a batch."""
