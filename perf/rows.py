"""What attention rows cost beside a plain encode, on a random tower of the shape of CLIP-ViT-L/14-336.

    python perf/rows.py [--batch 1 4] [--dtype bfloat16 float32] [--rounds 15] [--threads 2] [--device cuda]

Prints one Markdown row for each variant: median CPU and wall seconds of one call, and the median over rounds of the
ratio to the plain call of the same round. Each round runs every variant once, in a shuffled order. Intervals are order
statistics of the median: the narrowest that covers it with at least 95 %, or min to max where the rounds are too few.
CPU seconds count all threads, also those that spin while they wait for another: on a busy machine take --threads 1.

Peak memory is what one call adds to the loaded model. On the CPU it is resident memory of a process of its own (Linux),
whose allocator hands every tensor back at once: what is reported is the tensors, not the habits of malloc.
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
from vtcframe.profiling.timing import coverage, head, line, ratio, rounds

Variant = Callable[[], tuple[Sequence[Tensor], Tensor | None]]  # -> visual tokens, rows [L, V, H, N]

TOWER = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 10, "num_attention_heads": 2}
HEAD = ("batch", "dtype", "variant", "CPU s", "CPU / plain", "wall s", "wall / plain", "peak MiB")


def llava(small: bool, dtype: str, device: str):
    """LLaVA with a random tower and hardly any language model."""
    torch.manual_seed(0)
    side = 56 if small else 336
    vision = CLIPVisionConfig(**(SMALL if small else TOWER), image_size=side, patch_size=14)
    text = LlamaConfig(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=31)
    model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    return model.eval().to(device)


def variants(model, batch: int) -> dict[str, Variant]:
    """Name -> one call; the first is what all others are compared to."""
    vision = model.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size).to(model.device, model.dtype)
    ids = torch.full((batch, tokens), model.config.image_token_id, device=model.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    adapter = adapter_for(model)
    arrangement = adapter.arrange(inputs)
    blocks = list(model.model.vision_tower.get_submodule("encoder.layers").children())
    feeding = [block.self_attn for block in blocks[: model.config.vision_feature_layer + 1]]
    # A second model over the same weights: memo makes deepcopy hand them on.
    eager = copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})
    eager.set_attn_implementation("eager")

    def plain():
        return model.model.get_image_features(pixel_values=pixels).pooler_output, None

    def tapped(last: int):
        row = QueryRow()
        with Tap({module: [row] for module in feeding[-last:]}) as tap:
            features, _ = plain()
        return features, torch.stack([tap[module, row][0][..., 1:] for module in feeding[-last:]])

    def encoded(last: int):
        need = AttentionRows("cls", tuple(range(-last, 0)))
        evidence = adapter.encode(inputs, arrangement, [need])
        return evidence.tokens, evidence[need]

    def attentions(last: int):
        found = eager.model.get_image_features(pixel_values=pixels, output_attentions=True)
        matrices = found.attentions[: len(feeding)][-last:]
        return found.pooler_output, torch.stack([matrix[:, :, 0, 1:] for matrix in matrices]).float()

    return {
        "plain": plain,
        "rows of the last 3": lambda: tapped(3),
        "rows of the last 8": lambda: tapped(8),
        "rows of the last 3, unused block skipped": lambda: encoded(3),
        "rows of the last 8, unused block skipped": lambda: encoded(8),
        "eager, all attentions": lambda: attentions(3),
    }


def peak(call: Variant, device: str) -> float:
    """MiB that a call adds at its peak. On the CPU only the first call of a process tells."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark forgets how the model was built
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    # Not ru_maxrss: a process begins with that of its parent.
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 2**10


def peak_apart(name: str, batch: int, dtype: str, options: argparse.Namespace) -> float:
    """Peak of a variant's first call in a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(batch), "--dtype", dtype]
    command += ["--threads", str(torch.get_num_threads()), *(["--small"] if options.small else [])]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**17)}  # a threshold that does not grow with use
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)


def setting(batch: int, dtype: str, options: argparse.Namespace) -> list[tuple[str, ...]]:
    """The rows of the table for one batch size and dtype."""
    calls = variants(llava(options.small, dtype, options.device), batch)
    taken = {
        name: list(zip(*pairs, strict=True)) for name, pairs in rounds(calls, options.rounds, options.device).items()
    }
    base_cpu, base_wall = taken[next(iter(calls))]
    rows = []
    for name, (cpu, wall) in taken.items():
        mebibytes = peak(calls[name], "cuda") if options.device == "cuda" else peak_apart(name, batch, dtype, options)
        times = (f"{median(cpu):.3f}", ratio(cpu, base_cpu), f"{median(wall):.3f}", ratio(wall, base_wall))
        rows.append((str(batch), dtype, name, *times, f"{mebibytes:.0f}"))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="pictures a call")
    parser.add_argument(
        "--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float16", "float32"]
    )
    parser.add_argument("--rounds", type=int, default=15, help="6 or more give intervals of at least 95 %%")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: its own choice)")
    parser.add_argument("--small", action="store_true", help="a tiny tower, to see whether the script runs")
    parser.add_argument("--peak", metavar="VARIANT", help=argparse.SUPPRESS)  # how the script calls itself
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    with torch.no_grad():
        if options.peak:
            variants(llava(True, options.dtype[0], "cpu"), 1)[options.peak]()  # libraries load their code once
            calls = variants(llava(options.small, options.dtype[0], "cpu"), options.batch[0])
            print(peak(calls[options.peak], "cpu"))
            return
        tower = "a small tower for a smoke run" if options.small else "24 blocks of width 1024, 336 px, patch 14"
        print(
            f"{describe_machine(options.device)}; {tower}; {coverage(options.rounds)}",
            "",
            *head(HEAD),
            sep="\n",
            flush=True,
        )
        for dtype, batch in itertools.product(options.dtype, options.batch):
            print(*map(line, setting(batch, dtype, options)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
