"""Loading of checkpoints, and running a plan on a batch."""
