"""Baselines that every sweep runs beside the methods."""

CHANCE, POOL, DOWNSAMPLE = ("RandomPruner", "UniformPruner"), "Pool", "Downsample"
CONFIGURATION = "config.yaml"  # of a run, in its folder MODEL/DATA/NUMBER


BASELINES = *CHANCE, POOL, DOWNSAMPLE  # the last is a transform and prunes nothing
