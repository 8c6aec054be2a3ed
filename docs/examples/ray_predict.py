"""Answers a file of questions on a Ray cluster: `python ray_predict.py questions.jsonl predictions.jsonl --gpus 1`."""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset

from vtcframe import Budget, Stage, VtcCls
from vtcframe.data.decode import load_sample
from vtcframe.data.formats import read_samples
from vtcframe.data.sample import Sample
from vtcframe.inference.checkpoint import Backbone
from vtcframe.runs.predictor import Predictor

BACKBONE = Backbone("vtcframe:tiny")
STAGES = [Stage("projector", VtcCls(last=3), Budget(tokens=18))]
GENERATION = {"max_new_tokens": 4}


def decoded(row: dict[str, Sample]) -> dict[str, Sample]:
    """Load a sample's pictures; what cannot be read becomes its error."""
    return {"sample": load_sample(row["sample"])}


class Answerer:
    """An actor: a process that holds one model and answers batch after batch."""

    def __init__(self) -> None:
        self.predictor = Predictor(BACKBONE, STAGES, generation=GENERATION)
        self.predictor.setup("predict")
        self.predictor.to("cuda" if ray.get_gpu_ids() else "cpu")  # an actor sees no GPU but those that it was given
        self.batches = 0

    @torch.inference_mode()
    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answer the loaded samples of the column "sample": one "line" of JSON for each row."""
        rows = self.predictor.predict_step(list(batch["sample"]), self.batches)
        self.batches += 1
        return {"line": [json.dumps(asdict(row), ensure_ascii=False) for row in rows]}


def answers(samples: list[Sample], actors: int, gpus: float, batch_size: int) -> Dataset:
    """Return the lines in no order, computed as they are read. Each actor gets so many `gpus`."""
    DataContext.get_current().enable_fallback_to_arrow_object_ext_type = True  # samples travel as Python objects
    asked = ray.data.from_items([{"sample": sample} for sample in samples])
    pool = ActorPoolStrategy(size=actors)
    return asked.map(decoded).map_batches(Answerer, compute=pool, num_gpus=gpus, batch_size=batch_size)


def main() -> None:
    """Write the lines to a file that has its name only once it is whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("questions", type=Path, help="JSONL; its pictures lie where every machine can read them")
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor; 0.5 lets two share one")
    parser.add_argument("--batch-size", type=int, default=8)
    given = parser.parse_args()
    questions, part = given.questions.resolve(), given.predictions.with_name(given.predictions.name + ".part")
    samples = read_samples(questions, questions.parent)
    with part.open("w", encoding="utf-8") as file:
        for row in answers(samples, given.actors, given.gpus, given.batch_size).iter_rows():
            file.write(row["line"] + "\n")
    os.replace(part, given.predictions)


if __name__ == "__main__":
    main()
