"""Progress of a run: which samples are pending."""

from collections.abc import Collection, Sequence

from vtcframe.data.sample import Sample


class RunProgress:
    """Which samples of a run are pending, and which of them get view records.

    The writer of a run creates it, passes it to the data module and to the predictor, and opens it once it has read the
    ids that earlier attempts answered. Before that, the other methods raise RuntimeError.
    """

    def __init__(self) -> None:
        self._finished: frozenset[str] | None = None
        self._with_views: frozenset[str] | None = frozenset()

    @classmethod
    def opened(cls, *, views: bool = False) -> "RunProgress":
        """Return the progress of a run without a folder: every sample is pending, all or none get view records."""
        progress = cls()
        progress.open((), None if views else ())
        return progress

    def open(self, finished: Collection[str], with_views: Collection[str] | None) -> None:
        """Set the ids that are answered and those that get view records; None means all of them."""
        self._finished = frozenset(finished)
        self._with_views = None if with_views is None else frozenset(with_views)

    def pending(self, samples: Sequence[Sample]) -> list[Sample]:
        """Return the samples that need an answer, in their order."""
        if self._finished is None:
            raise RuntimeError("the folder of the run is not open yet, so the pending samples are not known")
        return [sample for sample in samples if sample.id not in self._finished]

    def needs_views(self, sample: Sample) -> bool:
        """Whether the rows of a sample get view records."""
        if self._finished is None:
            raise RuntimeError("the folder of the run is not open yet, so the samples with view records are not known")
        return self._with_views is None or sample.id in self._with_views
