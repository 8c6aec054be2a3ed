"""Benchmark attention rows against a plain encode, on a random tower with the shape of CLIP-ViT-L/14-336.

    python perf/rows.py [--batch 1 4] [--dtype bfloat16 float32] [--rounds 15] [--threads 2] [--device cuda]

Prints one Markdown row for each variant: median CPU and wall seconds of one call, and the median over rounds of the
ratio to the plain call of the same round. Each round runs every variant once, in shuffled order. Intervals are order
statistics of the median: the narrowest with a coverage of at least 95 %, or min to max with too few rounds. CPU seconds
count all threads, including those that busy-wait for another thread: on a busy machine use --threads 1.

Peak memory is the memory that one call adds to the loaded model. On the CPU it is the resident memory of a separate
process (Linux), whose allocator returns every tensor to the system at once, so that allocator caches do not count.
"""

import argparse
import copy
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig, LlavaConfig

from vtcframe.adapters.base import adapter_for
from vtcframe.core.encoder_readers import QueryRow
from vtcframe.core.needs import AttentionRows
from vtcframe.hooks.tap import Tap
from vtcframe.machine import describe_machine
from vtcframe.profiling.timing import describe_rounds, format_head, format_row, ratio, time_rounds

Variant = Callable[[], tuple[Sequence[Tensor], Tensor | None]]  # -> visual tokens, rows [L, V, H, N]

TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 10, "num_attention_heads": 2}
HEAD = ("batch", "dtype", "variant", "CPU s", "CPU / plain", "wall s", "wall / plain", "peak MiB")


def llava(small: bool, dtype: str, device: str):
    """Return a LLaVA with a random tower and a minimal language model."""
    torch.manual_seed(0)
    side = 56 if small else 336
    vision = CLIPVisionConfig(**(SMALL if small else TOWER), image_size=side, patch_size=14)
    text = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31)
    model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.eval().to(device)


def variants(model, batch: int) -> dict[str, Variant]:
    """Return one call for each variant name. The first is the baseline of all others."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size).to(model.device, model.dtype)
    ids = torch.full((batch, tokens), model.config.image_token_id, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    adapter = adapter_for(model)
    arrangement = adapter.arrange(inputs)
    blocks = list(model.model.vision_tower.get_submodule("encoder.layers").children())
    used = [block.self_attn for block in blocks[: model.config.vision_feature_layer + 1]]
    # A second model that shares the weights: the memo of deepcopy maps each tensor to itself.
    eager = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    eager.set_attn_implementation("eager")

    def plain():
        return model.model.get_image_features(pixel_values=pixels).pooler_output, None

    def tapped(last: int):
        row = QueryRow()
        with Tap({module: [row] for module in used[-last:]}) as tap:
            features, _ = plain()
        return features, torch.stack([tap[module, row][0][..., 1:] for module in used[-last:]])

    def encoded(last: int):
        need = AttentionRows("cls", tuple(range(-last, 0)))
        evidence = adapter.encode(inputs, arrangement, [need])
        return evidence.tokens, evidence[need]

    def attentions(last: int):
        output = eager.model.get_image_features(pixel_values=pixels, output_attentions=True)
        matrices = output.attentions[: len(used)][-last:]
        return output.pooler_output, torch.stack([matrix[:, :, 0, 1:] for matrix in matrices]).float()

    return {
        "plain": plain,
        "rows of the last 3": lambda: tapped(3),
        "rows of the last 8": lambda: tapped(8),
        "rows of the last 3, unused block skipped": lambda: encoded(3),
        "rows of the last 8, unused block skipped": lambda: encoded(8),
        "eager, all attentions": lambda: attentions(3),
    }


def measure_peak(call: Variant, device: str) -> float:
    """Return the peak memory in MiB that a call adds. On the CPU only the first call of a process is valid."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark, which includes building the model
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    # Not ru_maxrss: a process inherits the value of its parent.
    match = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) / 2**10


def peak_in_new_process(name: str, batch: int, dtype: str, options: argparse.Namespace) -> float:
    """Return the peak memory in MiB of a variant's first call in a new process."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(batch), "--dtype", dtype]
    command += ["--threads", str(torch.get_num_threads()), *(["--small"] if options.small else [])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}  # fixed: the default threshold grows
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_rows(batch: int, dtype: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """Return the table rows for one batch size and dtype."""
    calls = variants(llava(options.small, dtype, options.device), batch)
    times_of = {
        name: list(zip(*pairs, strict=True))
        for name, pairs in time_rounds(calls, options.rounds, options.device).items()
    }
    base_cpu, base_wall = times_of[next(iter(calls))]
    rows = []
    for name, (cpu, wall) in times_of.items():
        mebibytes = (
            measure_peak(calls[name], "cuda")
            if options.device == "cuda"
            else peak_in_new_process(name, batch, dtype, options)
        )
        times = (f"{median(cpu):.3f}", ratio(cpu, base_cpu), f"{median(wall):.3f}", ratio(wall, base_wall))
        rows.append((str(batch), dtype, name, *times, f"{mebibytes:.0f}"))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="pictures per call")
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float16", "float32"]
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="number of rounds; 6 or more give intervals of at least 95 %%"
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="number of CPU threads of torch (default: torch's choice)")
    parser.add_argument("--small", action="store_true", help="use a tiny tower, to check that the script runs")
    parser.add_argument("--peak", metavar="VARIANT", help=argparse.SUPPRESS)  # for calls in a new process
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with torch.no_grad():
        if options.peak:
            warm_up = variants(llava(True, options.dtype[0], "cpu"), 1)[options.peak]
            warm_up()  # loads library code before the measurement
            calls = variants(llava(options.small, options.dtype[0], "cpu"), options.batch[0])
            print(measure_peak(calls[options.peak], "cpu"))
            return
        tower = "a small tower for a smoke run" if options.small else "24 blocks of width 1024, 336 px, patch 14"
        print(
            f"{describe_machine(options.device)}; {tower}; {describe_rounds(options.rounds)}",
            "",
            *format_head(HEAD),
            sep="\n",
            flush=True,
        )
        for dtype, batch in itertools.product(options.dtype, options.batch):
            print(*map(format_row, measure_rows(batch, dtype, options)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
