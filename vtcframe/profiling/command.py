"""`vtcframe bench`: what pruning costs and saves on this machine, beside the untouched model."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vtcframe.atomic import write_atomic
from vtcframe.config.short_names import expand_text
from vtcframe.config.type_hints import Kind
from vtcframe.errors import UsageError
from vtcframe.profiling.sizes import SHAPES

DEFAULT_SHAPE, DEFAULT_PRUNER = "llava-1.5-7b", "{name: VtcCls, last: 3, query: proxy}"
NINTHS = 3, 2, 1  # of the visual tokens that stay: 192, 128 and 64 of 576


def main(arguments: list[str]) -> int:
    """Print tables of each batch size, write every round to `--json`, and return the exit status.

    UsageError for what cannot be run.
    """
    given = _options().parse_args(arguments)
    if given.model and (given.shape or given.layers):
        raise UsageError("--model is a checkpoint as it is: leave --shape and --layers out")
    specs = [
        expand_text(spec, Kind("pruner"), "pruner") for spec in given.pruner
    ]  # typos are told before torch is imported
    import torch
    from transformers.utils.logging import disable_progress_bar

    from vtcframe.config.parser import make_pruner
    from vtcframe.inference.checkpoint import device_for
    from vtcframe.machine import describe_machine
    from vtcframe.profiling.tables import LEGEND, tables
    from vtcframe.profiling.timing import coverage
    from vtcframe.profiling.workload import checkpoint_subject, random_subject

    disable_progress_bar()  # of loading weights
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = device_for(given.device or str(accelerator or "cpu"))
    if given.threads:
        torch.set_num_threads(given.threads)
    pruners = [make_pruner(spec) for spec in specs]
    if given.model:
        subject = checkpoint_subject(given.model, given.dtype, given.attn, device)
    else:
        name, dtype = given.shape or DEFAULT_SHAPE, getattr(torch, given.dtype)
        subject = random_subject(name, SHAPES[name], given.layers, dtype, given.attn, device)
    unit = "cpu" if device.type == "cpu" else "wall"
    on, told = describe_machine(device), f"{subject.told}, {given.dtype}, {given.attn}"
    found: dict[str, Any] = {"machine": on, "model": told, "unit": unit, "rounds": given.rounds, "batches": []}
    _write(given.json, found)  # a file that cannot be written is told before anything is measured
    print(f"{on}.", f"{told}.", coverage(given.rounds), "", LEGEND[unit], sep="\n", flush=True)
    for size in given.batch:
        try:
            batch = _measured(subject, pruners, size, given)
        except torch.OutOfMemoryError as error:
            print(f"## Batch {size}", "", f"Out of memory: {error}", "", sep="\n", flush=True)
            continue
        print(*tables(batch, unit), sep="\n", flush=True)
        found["batches"].append(asdict(batch))
        _write(given.json, found)
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="vtcframe bench",
        description="What pruning costs and saves on this machine, stage by stage, beside the untouched model.",
    )
    options.add_argument("--shape", choices=SHAPES, help=f"published sizes, random weights; {DEFAULT_SHAPE}")
    options.add_argument("--layers", type=_positive, help="of its language model; as many as fit when not given")
    options.add_argument("--model", metavar="PATH", help="a checkpoint instead: folder, Hub name or vtcframe:tiny")
    options.add_argument(
        "--pruner", nargs="+", default=[DEFAULT_PRUNER], metavar="SPEC", help=f'names or YAML; "{DEFAULT_PRUNER}"'
    )
    options.add_argument("--tokens", type=_positive, nargs="+", help="visual tokens that stay; 3, 2 and 1 ninths")
    options.add_argument("--batch", type=_positive, nargs="+", default=[1, 4], help="samples a batch; %(default)s")
    options.add_argument("--answer", type=_positive, nargs="+", default=[1, 16], help="tokens generated; %(default)s")
    options.add_argument("--rounds", type=_positive, default=15, help="6 or more give intervals of 95 %%; %(default)s")
    options.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="of weights")
    options.add_argument("--attn", default="sdpa", help="attention kernel; %(default)s")
    options.add_argument("--device", help="for example cpu; an accelerator where there is one")
    options.add_argument("--threads", type=_positive, help="of torch on the CPU; its own choice when not given")
    options.add_argument("--json", type=Path, metavar="FILE", help="all rounds, written after each batch size")
    return options


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _measured(subject: Any, pruners: list[Any], size: int, given: argparse.Namespace) -> Any:
    """Measure every pruner at every budget. UsageError for what they or the model refuse."""
    from vtcframe.adapters.base import adapter_for
    from vtcframe.inference.compressed import compress
    from vtcframe.profiling.measure import measure

    inputs, model, processor = subject.inputs(size), subject.model, subject.processor
    try:
        adapter = adapter_for(model, processor)
    except LookupError as error:
        raise UsageError(str(error)) from error
    try:
        untouched = int(adapter.arrange(inputs).layout.untouched.min())
        tokens = given.tokens or [untouched * ninths // 9 for ninths in NINTHS]
        if max(tokens) >= untouched:
            raise ValueError(f"a sample has {untouched} visual tokens: give --tokens that leave some of them out")
        cases = [compress(model, pruner, tokens=n, processor=processor) for pruner in pruners for n in tokens]
        return measure(model, cases, inputs, given.answer, given.rounds)
    except ValueError as error:
        raise UsageError(f"{subject.told}: {error}") from error


def _write(path: Path | None, found: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, [json.dumps(found).encode() + b"\n"])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error
