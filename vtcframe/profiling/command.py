"""`vtcframe bench`: measure the cost and the speedup of pruning on this machine, compared to the unpruned model."""

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

DEFAULT_SHAPE = "llava-1.5-7b"
DEFAULT_PRUNER = "{name: VtcCls, last: 3, query: proxy}"
NINTHS = 3, 2, 1  # default numbers of kept tokens, in ninths of the visual tokens: 192, 128 and 64 of 576


def main(arguments: list[str]) -> int:
    """Print tables for each batch size, write every round to `--json`, and return the exit status.

    Raises UsageError for options, models or pruners that cannot be used.
    """
    options = _parser().parse_args(arguments)
    if options.model and (options.shape or options.layers):
        raise UsageError("--model is a checkpoint as it is: leave --shape and --layers out")
    # Reports a misspelled pruner before torch is imported.
    specs = [expand_text(spec, Kind("pruner"), "pruner") for spec in options.pruner]
    import torch
    from transformers.utils.logging import disable_progress_bar

    from vtcframe.config.parser import make_pruner
    from vtcframe.inference.checkpoint import device_for
    from vtcframe.machine import describe_machine
    from vtcframe.profiling.tables import LEGEND, format_tables
    from vtcframe.profiling.timing import describe_rounds
    from vtcframe.profiling.workload import checkpoint_subject, random_subject

    disable_progress_bar()  # the bar shown while weights are loaded
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device = device_for(options.device or str(accelerator or "cpu"))
    if options.threads:
        torch.set_num_threads(options.threads)
    pruners = [make_pruner(spec) for spec in specs]
    if options.model:
        subject = checkpoint_subject(options.model, options.dtype, options.attn, device)
    else:
        name = options.shape or DEFAULT_SHAPE
        dtype = getattr(torch, options.dtype)
        subject = random_subject(name, SHAPES[name], options.layers, dtype, options.attn, device)
    unit = "cpu" if device.type == "cpu" else "wall"
    machine = describe_machine(device)
    model = f"{subject.description}, {options.dtype}, {options.attn}"
    results: dict[str, Any] = {
        "machine": machine,
        "model": model,
        "unit": unit,
        "rounds": options.rounds,
        "batches": [],
    }
    _write(options.json, results)  # reports a file that cannot be written before the measurements start
    print(f"{machine}.", f"{model}.", describe_rounds(options.rounds), "", LEGEND[unit], sep="\n", flush=True)
    for size in options.batch:
        try:
            batch = _measure(subject, pruners, size, options)
        except torch.OutOfMemoryError as error:
            print(f"## Batch {size}", "", f"Out of memory: {error}", "", sep="\n", flush=True)
            continue
        print(*format_tables(batch, unit), sep="\n", flush=True)
        results["batches"].append(asdict(batch))
        _write(options.json, results)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vtcframe bench",
        description="Measure the cost and the speedup of pruning on this machine, stage by stage, compared to the "
        "unpruned model.",
    )
    parser.add_argument(
        "--shape", choices=SHAPES, help=f"published model size to build with random weights (default: {DEFAULT_SHAPE})"
    )
    parser.add_argument(
        "--layers", type=_positive, help="number of language-model layers to build (default: as many as fit)"
    )
    parser.add_argument(
        "--model", metavar="PATH", help="checkpoint to load instead of --shape: folder, Hub name or vtcframe:tiny"
    )
    parser.add_argument(
        "--pruner",
        nargs="+",
        default=[DEFAULT_PRUNER],
        metavar="SPEC",
        help=f'pruners to measure, as names or YAML (default: "{DEFAULT_PRUNER}")',
    )
    parser.add_argument(
        "--tokens",
        type=_positive,
        nargs="+",
        help="numbers of visual tokens to keep (default: 3/9, 2/9 and 1/9 of a sample's tokens)",
    )
    parser.add_argument(
        "--batch", type=_positive, nargs="+", default=[1, 4], help="numbers of samples per batch (default: %(default)s)"
    )
    parser.add_argument(
        "--answer",
        type=_positive,
        nargs="+",
        default=[1, 16],
        help="numbers of tokens to generate (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=15,
        help="number of rounds; 6 or more give intervals of at least 95 %% (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="type of the weights (default: %(default)s)",
    )
    parser.add_argument("--attn", default="sdpa", help="attention kernel (default: %(default)s)")
    parser.add_argument("--device", help="device, for example cpu (default: the accelerator if there is one)")
    parser.add_argument("--threads", type=_positive, help="number of CPU threads of torch (default: torch's choice)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="JSON file for all rounds, written after each batch size"
    )
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def _measure(subject: Any, pruners: list[Any], size: int, options: argparse.Namespace) -> Any:
    """Measure every pruner at every budget on a batch of `size` samples.

    Raises UsageError if a pruner or the model rejects the combination.
    """
    from vtcframe.adapters.base import adapter_for
    from vtcframe.inference.compressed import compress
    from vtcframe.profiling.measure import measure_batch

    model = subject.model
    processor = subject.processor
    inputs = subject.inputs(size)
    try:
        adapter = adapter_for(model, processor)
    except LookupError as error:
        raise UsageError(str(error)) from error
    try:
        untouched = int(adapter.arrange(inputs).layout.untouched.min())
        tokens = options.tokens or [untouched * ninths // 9 for ninths in NINTHS]
        if max(tokens) >= untouched:
            raise ValueError(f"a sample has {untouched} visual tokens: give smaller values of --tokens")
        cases = [compress(model, pruner, tokens=n, processor=processor) for pruner in pruners for n in tokens]
        return measure_batch(model, cases, inputs, options.answer, options.rounds)
    except ValueError as error:
        raise UsageError(f"{subject.description}: {error}") from error


def _write(path: Path | None, results: dict[str, Any]) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, [json.dumps(results).encode() + b"\n"])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error}") from error
