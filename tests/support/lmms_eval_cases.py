"""A task, a model and requests of lmms-eval."""

import json
from pathlib import Path

from lmms_eval.api.instance import Instance
from lmms_eval.models import get_model
from PIL import Image

from vtcframe.assets import bundled

QUESTIONS = Path(bundled("vtcframe:questions"))


TINY = "pretrained=vtcframe:tiny"


VTC = f"{TINY},pruner=VtcCls,tokens=18"


COUNT = 7


ASKED = [json.loads(line) for line in (QUESTIONS / "questions.jsonl").read_text().splitlines()[:COUNT]]


TASK = {
    "task": "scenes",
    "dataset_path": "parquet",
    "dataset_kwargs": {"data_files": {"test": "scenes.parquet"}},
    "test_split": "test",
    "output_type": "generate_until",
    "doc_to_visual": "image",
    "doc_to_text": "question",
    "doc_to_target": "answer",
    "generation_kwargs": {"max_new_tokens": 4},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}


def model(arguments=VTC, **options):
    return get_model("vtcframe").create_from_arg_string(arguments, {"batch_size": "1", "device": None, **options})


def request(said, options=None, doc=0, task="t", kind="generate_until", **metadata):
    """Ask what `said` makes of a document, or messages themselves."""
    told = said if callable(said) else lambda doc: said
    arguments = ("", told, {"max_new_tokens": 4, **(options or {})}, doc, task, "test")
    metadata = {"task": task, "doc_id": doc, "repeats": 1, **metadata}
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata=metadata)


def user(*parts):
    kinds = {str: "text", Image.Image: "image", Path: "image"}
    content = [{"type": kinds[type(part) if isinstance(part, str) else Image.Image]} for part in parts]
    for told, part in zip(content, parts, strict=True):
        told["text" if told["type"] == "text" else "url"] = str(part) if isinstance(part, Path) else part
    return [{"role": "user", "content": content}]


def scene(number):
    return Image.open(QUESTIONS / ASKED[number]["image"]).convert("RGB")


def answered(lm, *said, **options):
    lm.task_dict = {"t": {"test": list(range(len(said)))}}
    return [one.text for one in lm.generate_until([request(one, options, n) for n, one in enumerate(said)])]
