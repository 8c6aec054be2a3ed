"""What a pruner keeps of one picture: `vtcframe explain` and the page of `vtcframe explore`."""
