"""Visualization of the tokens that a pruner keeps: `vtcframe explain` and the page of `vtcframe explore`."""
