"""`vtcframe check`: the laws of adapters, checked on a checkpoint of the user."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from vtcframe.adapters.base import adapter_for
from vtcframe.assets import bundled
from vtcframe.core.budget import Budget
from vtcframe.data.decode import load_sample
from vtcframe.data.sample import Sample as Question
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import Backbone, device_for
from vtcframe.methods.baselines import RandomPruner, UniformPruner
from vtcframe.methods.vtc_cls import VtcCls
from vtcframe.testing.laws.adapters import (
    GREEDY,
    check_alone,
    check_keep_all,
    check_raising,
    check_removed_is_masked,
    check_restored,
    inputs_for,
)
from vtcframe.testing.laws.closeness import relative_distance, relative_tolerance
from vtcframe.testing.tiny_models.llava_families import Sample

PRUNERS = VtcCls(), RandomPruner(), UniformPruner()
QUESTIONS = "what is in the image ?", "which colors and shapes are there , and where ?"
Dtype = Literal["float32", "bfloat16", "float16"]


SUCCESS, LAW_BROKEN = 0, 1  # exit status


def main(arguments: list[str]) -> int:
    """Run `vtcframe check`: print which laws hold on a checkpoint, and return the exit status."""
    options = argparse.ArgumentParser(prog="vtcframe check", description="Check every law on a checkpoint.")
    options.add_argument("model", help="folder, name on the Hugging Face Hub, or vtcframe:tiny")
    options.add_argument(
        "--image", nargs="+", action="extend", default=[], help="pictures to use instead of the bundled ones"
    )
    options.add_argument("--tokens", type=int, help="visual tokens kept in each sample (default: a quarter)")
    options.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the weights"
    )
    options.add_argument("--device", default="cpu", help="where to run, for example cuda")
    parsed = options.parse_args(arguments)
    outcomes = []
    for law, pruner, outcome in check(parsed.model, parsed.image, parsed.tokens, parsed.dtype, parsed.device):
        outcomes.append(outcome.partition(":")[0])
        print(f"{law:34}  {pruner:20}  {outcome}", flush=True)
    print(", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("holds", "broken", "not served")))
    return LAW_BROKEN if "broken" in outcomes else SUCCESS


def check(
    path: str,
    images: Sequence[str] = (),
    tokens: int | None = None,
    dtype: Dtype = "float32",
    device: str = "cpu",
) -> Iterator[tuple[str, str, str]]:
    """Yield law, pruner and outcome: "holds", "broken: ..." or "not served: ...".

    `tokens` are kept in each sample (default: a quarter). UsageError for a checkpoint or options that cannot be
    checked.
    """
    try:
        budget = Budget(ratio=0.25) if tokens is None else Budget(tokens)
    except ValueError as error:
        raise UsageError(str(error)) from error
    pictures = [_open(image) for image in images] or _bundled()
    place = device_for(device)
    disable_progress_bar()  # progress bars of loading weights
    model, processor = Backbone(path, dtype).load()
    model = model.to(place).eval()
    try:
        adapter = adapter_for(model, processor)
        samples = _samples(pictures)
        inputs = inputs_for(model, processor, samples)
        layout = adapter.arrange(inputs).layout
        tolerance, noise = _tolerance(model, processor, samples)  # runs the model once, as check_restored requires
    except (LookupError, ValueError) as error:
        cause = "" if isinstance(error, LookupError) else ". Its processor may belong to another model"
        raise UsageError(f"{path} cannot be checked: {error}{cause}") from error
    if budget.covers(layout):
        raise UsageError(f"{budget} drops nothing: the samples have {layout.untouched.tolist()} visual tokens")
    bound = (
        f"logits may differ by {tolerance:.1e} of the largest logit, those of the untouched model differ by "
        f"{noise:.1e} alone and in a batch"
    )
    hint = "" if model.dtype == torch.float32 else "; near ties may swap in half precision, so check in float32"
    yield "an adapter serves it", "-", f"holds: {type(adapter).__name__}, {model.dtype} on {device}; {bound}{hint}"
    yield "an exception leaves nothing behind", "-", _outcome(model, partial(check_raising, model, inputs))
    for pruner in PRUNERS:
        try:
            adapter.observe(inputs, pruner.needs)
        except ValueError as error:
            yield "every law", str(pruner), f"not served: {error}"
            continue
        arguments = pruner, budget, "original", GREEDY, tolerance
        for law, check_law in {
            "keep all": partial(check_keep_all, model, inputs, pruner, "original", GREEDY),
            "removed = masked": partial(check_removed_is_masked, model, inputs, *arguments),
            "alone = in a batch": partial(check_alone, model, processor, samples, "left", *arguments),
        }.items():
            yield law, str(pruner), _outcome(model, check_law)


def _bundled() -> list[Image.Image]:
    folder = Path(bundled("vtcframe:questions"))
    return [_open(str(path)) for path in sorted(folder.glob("images/*.png"))[:2]]


def _open(path: str) -> Image.Image:
    question = load_sample(Question("check", "", (Path(path),)))
    if question.error is not None:
        raise UsageError(question.error)
    return question.pictures[0]


def _samples(pictures: Sequence[Image.Image]) -> list[Sample]:
    """Return a ragged batch: each picture with a question, the first two together, and a question without pictures."""
    questions = [(QUESTIONS[n % 2], [picture]) for n, picture in enumerate(pictures)]
    questions += [(QUESTIONS[1], list(pictures[:2]))] if len(pictures) > 1 else []
    questions.append((QUESTIONS[0], []))
    return [(" ".join(["<image>"] * len(images) + [text]), images) for text, images in questions]


@torch.no_grad()
def _tolerance(model: Any, processor: Any, samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the tolerance of logits, and the difference of those of the untouched model alone and in a batch.

    Both are relative to the largest logit. Rounding errors grow with the depth and width of a model and with half
    precision, whether or not tokens are pruned. So the tolerance is at least that of the laws, and at least four times
    the difference of the untouched model.
    """
    together = model(**inputs_for(model, processor, samples)).logits[:, -1]
    alone = [model(**inputs_for(model, processor, [sample])).logits[0, -1] for sample in samples]
    noise = relative_distance(together, torch.stack(alone))
    return max(relative_tolerance(model.dtype), 4 * noise), noise


def _outcome(model: Any, check_law: Callable[[], None]) -> str:
    try:
        with check_restored(model):
            check_law()
    except AssertionError as error:
        return f"broken: {error}"
    except Exception as error:  # any error of an adapter: the next laws are still checked
        return f"broken: {type(error).__name__}: {error}"
    return "holds"
