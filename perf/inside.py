"""Benchmark pruning stages inside the language model: prefill of one prompt by a Llama with random weights.

    python perf/inside.py [--batch 1 4] [--layers 8] [--width 1024] [--rounds 15] [--threads 2] [--device cuda]

The prompt has 35 text tokens, 576 visual tokens and 64 text tokens; 64 visual tokens are kept from layer 2 on. Prints
one Markdown row for each variant: median CPU and wall seconds, and the median over rounds of the ratio to the plain
model in the same round. "Oracle" is the lower limit: the first two layers run on the complete prompt, the others
natively on a prompt of the pruned length. "FastV, keep all" measures the cost of the hooks alone. "Look-ahead" uses the
attention of the layer after the stage (PyramidDrop).
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from transformers import DynamicCache, LlamaConfig, LlamaModel

from vtcframe import Budget, Evidence, Layout, Pipeline
from vtcframe.components.allocators import Even
from vtcframe.components.ensemblers import Mean
from vtcframe.components.scorers import Random, TextAttention
from vtcframe.components.selectors import TopK
from vtcframe.core.stages import Stage
from vtcframe.hooks.llm import LlmStages
from vtcframe.machine import describe_machine
from vtcframe.profiling.timing import describe_rounds, format_head, format_row, ratio, time_rounds

SYSTEM, VISUAL, QUESTION = 35, 576, 64  # prompt tokens before, of and after the picture
KEPT = 64  # visual tokens kept by the stage
LAYER = 2  # layer before which the stage prunes
HEAD = ("batch", "variant", "CPU s", "CPU / plain", "wall s", "wall / plain")


def decoder(layers: int, width: int, attention: str, dtype: torch.dtype, device: str) -> LlamaModel:
    """Return a Llama with random weights and without its head."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        vocab_size=8,
    )
    return LlamaModel._from_config(config, attn_implementation=attention, dtype=dtype).eval().to(device)


def evidence_of(embeds: torch.Tensor) -> Evidence:
    """Return evidence with the layout of one picture in each prompt; `embeds` is [batch, length, width]."""
    batch = len(embeds)
    token = torch.arange(VISUAL)
    side = int(VISUAL**0.5)
    samples = torch.arange(batch)
    zeros = torch.zeros(batch, dtype=torch.long)
    layout = Layout(
        sample=samples,
        key=samples,
        image=zeros,
        frame=zeros,
        box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(batch, 4),
        grid=torch.stack([token // side, token % side], 1).expand(batch, -1, 2).to(embeds.device),
        column=(token + SYSTEM).expand(batch, -1).to(embeds.device),
        untouched=torch.full((batch,), VISUAL),
    )
    return Evidence(embeds[:, SYSTEM : SYSTEM + VISUAL], layout)


def variants(options: argparse.Namespace, batch: int) -> dict[str, Callable[[], object]]:
    """Return one prefill call for each variant name. The first is the baseline of all others."""
    dtype = getattr(torch, options.dtype)
    model = decoder(options.layers, options.width, "sdpa", dtype, options.device)
    length = SYSTEM + VISUAL + QUESTION
    embeds = torch.randn(batch, length, options.width, dtype=dtype, device=options.device)
    evidence = evidence_of(embeds)
    column = torch.arange(length).expand(batch, -1)
    first = decoder(LAYER, options.width, "sdpa", dtype, options.device)
    rest = decoder(options.layers - LAYER, options.width, "sdpa", dtype, options.device)

    def plain() -> object:
        return model(inputs_embeds=embeds, past_key_values=DynamicCache()).last_hidden_state

    def pruned(scorer: TextAttention | Random, kept: int) -> object:
        pruner = Pipeline((scorer,), Mean(), Even(), TopK(), across="sample")
        with LlmStages(model, evidence, column, [Stage(f"llm:{LAYER}", pruner, Budget(kept))]):
            return plain()

    def oracle() -> object:
        first(inputs_embeds=embeds, past_key_values=DynamicCache())
        return rest(inputs_embeds=embeds[:, : length - VISUAL + KEPT], past_key_values=DynamicCache())

    return {
        "plain": plain,
        f"FastV, keep {KEPT}": lambda: pruned(TextAttention(-1), KEPT),
        f"all text queries, keep {KEPT}": lambda: pruned(TextAttention(-1, queries="text"), KEPT),
        f"look-ahead, keep {KEPT}": lambda: pruned(TextAttention(LAYER), KEPT),
        f"random, keep {KEPT}": lambda: pruned(Random(), KEPT),
        "FastV, keep all": lambda: pruned(TextAttention(-1), VISUAL),
        "oracle": oracle,
    }


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print(f"{options.layers} layers of width {options.width}, {options.dtype}; {describe_machine(options.device)}.")
    print(describe_rounds(options.rounds), *format_head(HEAD), sep="\n")
    for batch in options.batch:
        times_of = time_rounds(variants(options, batch), options.rounds, options.device)
        plain = times_of["plain"]
        for name, times in times_of.items():
            cells = [str(batch), name]
            for unit in (0, 1):
                seconds = [pair[unit] for pair in times]
                cells += [f"{median(seconds):.3f}", ratio(seconds, [pair[unit] for pair in plain])]
            print(format_row(cells))


if __name__ == "__main__":
    main()
