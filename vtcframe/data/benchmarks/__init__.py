"""Published benchmarks: how their files are read and their answers scored."""

from vtcframe.data.benchmarks.choices import MmBench, ScienceQa, SeedBench
from vtcframe.data.benchmarks.open_answers import Gqa, MmVet, TextVqa, VqaV2
from vtcframe.data.benchmarks.yes_or_no import Mme, Pope

__all__ = ["Gqa", "MmBench", "MmVet", "Mme", "Pope", "ScienceQa", "SeedBench", "TextVqa", "VqaV2"]
