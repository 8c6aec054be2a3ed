"""Rows of predictions.jsonl made of samples, plans and prunings."""

from typing import Any

from vtcframe.core.layout import Layout
from vtcframe.core.pruned import Pruned
from vtcframe.core.serialization import UNPRUNED, budget_data, plan_data
from vtcframe.core.stages import Plan
from vtcframe.data.results import Prediction, ViewRecord
from vtcframe.data.sample import Sample


def run_fields(plan: Plan | None) -> dict[str, Any]:
    """Return the fields of a row that describe its run."""
    if plan is None:
        return {"label": "unpruned", "method": UNPRUNED, "budget": None}
    return {"label": str(plan), "method": plan_data(plan), "budget": budget_data(plan.budget)}


def view_records(layout: Layout, pruned: Pruned, p: int) -> list[ViewRecord]:
    """Return the record of each view of sample `p` in `layout`: kept tokens and scores on its grid.

    The layout of `pruned` may have joined the views.
    """
    rows = pruned.layout.sample == p
    column = pruned.layout.column.cpu()[rows]
    kept, scores = (x.cpu()[rows][column >= 0].tolist() for x in (pruned.kept, pruned.scores))
    outcomes = dict(zip(column[column >= 0].tolist(), zip(kept, scores, strict=True), strict=True))
    views = []
    for v in (layout.sample == p).nonzero()[:, 0].tolist():
        height, width = (layout.grid[v].amax(0) + 1).tolist()
        view = ViewRecord(
            image=int(layout.image[v]),
            frame=int(layout.frame[v]),
            box=layout.box[v].tolist(),
            kept=[[None] * width for _ in range(height)],
            scores=[[None] * width for _ in range(height)],
        )
        for (y, x), at in zip(layout.grid[v].tolist(), layout.column[v].tolist(), strict=True):
            if at >= 0 and y >= 0:  # neither padding nor a token without a position
                view["kept"][y][x], score = outcomes[at]
                view["scores"][y][x] = float(f"{score:.6g}")
        views.append(view)
    return views


def make_row(sample: Sample, **outcome: Any) -> Prediction:
    """Return the row of a sample: its question, answer, pictures and metadata, with the other fields from `outcome`."""
    images = [str(image) for image in (*sample.images, *(clip[0] for clip in sample.clips if clip))]
    return Prediction(
        sample.id, sample.type, sample.question, sample.answer, images=images, meta=sample.meta, **outcome
    )
