"""Published methods and baselines: their own few fields and the parts they are made of."""

from vtcframe.methods.cls import FasterVlm, RandomPruner, UniformPruner, VtcCls

__all__ = ["FasterVlm", "RandomPruner", "UniformPruner", "VtcCls"]
