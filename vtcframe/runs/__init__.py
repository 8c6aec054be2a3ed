"""`vtcframe predict`: the Lightning modules of a run, its folder, its table and its exports."""
