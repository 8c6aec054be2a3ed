"""Pictures of which some are cut into crops, and what is kept of them."""


def kept_places(pruned):
    return [row[row >= 0].tolist() for row in pruned.place]


def left(pruned):
    """Samples and columns of the tokens, whatever the rows."""
    sample = pruned.layout.sample[:, None].expand(pruned.column.shape)
    return sorted(zip(sample[pruned.column >= 0].tolist(), pruned.column[pruned.column >= 0].tolist(), strict=True))
