"""Places that a pruning keeps."""


def kept(pruned):
    """Places of each row in raster order."""
    return [row[row >= 0].tolist() for row in pruned.place]
