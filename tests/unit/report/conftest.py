import pytest
from PIL import Image

from support.report_runs import QUARTER, folder, rows
from vtcframe.data.results import Prediction


@pytest.fixture
def sweep(tmp_path):
    """Runs on two sets of questions: methods better and worse than chance, slower and faster; some samples failed."""
    failed = [Prediction(f"f{n}", None, "what ?", None, error="the picture <b>x|y</b> is missing") for n in range(7)]
    for name in ("toys", "more"):
        path = folder(
            tmp_path / "runs" / name,
            failed,
            rows("unpruned", "1" * 40 + "0" * 4),
            *(rows(f"RandomPruner(seed={n})", "1" * (20 + n) + "0" * (24 - n), QUARTER, 0.05) for n in range(3)),
            rows("UniformPruner()", "1" * 25 + "0" * 19, QUARTER, 0.05),
            rows("VtcCls(last=3)", "1" * 39 + "0" * 5, QUARTER, 0.2),
            rows("<script>alert(1)</script>|", "0" * 44, QUARTER, 0.03),
            **{"data.path": f"{name}.jsonl"},
        )
        (path / "pictures").mkdir()
        Image.new("RGB", (1500, 300), "teal").save(path / "pictures" / "q0.png")
    return tmp_path / "runs"
