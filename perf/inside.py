"""What stages inside the language model cost and save: one reading of a prompt by a random Llama.

    python perf/inside.py [--batch 1 4] [--layers 8] [--width 1024] [--rounds 15] [--threads 2] [--device cuda]

576 visual tokens between 35 and 64 of text; at layer 2, 64 stay. Prints one Markdown row for each variant: median CPU
and wall seconds, and the median over rounds of the ratio to the plain model in the same round. "Oracle" is what a stage
cannot beat: the first two layers on the whole prompt, the others natively on one of the shortened length. "Nothing
leaves" is the price of the hooks alone, "ahead" reads the attention of the layer behind the stage (PyramidDrop).
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
from vtcframe.profiling.timing import coverage, head, line, ratio, rounds

SYSTEM, VISUAL, QUESTION, KEPT, AT = 35, 576, 64, 64, 2
HEAD = ("batch", "variant", "CPU s", "CPU / plain", "wall s", "wall / plain")


def decoder(layers: int, width: int, attention: str, dtype: torch.dtype, device: str) -> LlamaModel:
    """Return a random Llama without its head."""
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
    """Tell where the picture lies in each prompt."""
    batch, at, side = len(embeds), torch.arange(VISUAL), int(VISUAL**0.5)
    samples, none = torch.arange(batch), torch.zeros(batch, dtype=torch.long)
    layout = Layout(
        sample=samples,
        key=samples,
        image=none,
        frame=none,
        box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(batch, 4),
        grid=torch.stack([at // side, at % side], 1).expand(batch, -1, 2).to(embeds.device),
        column=(at + SYSTEM).expand(batch, -1).to(embeds.device),
        untouched=torch.full((batch,), VISUAL),
    )
    return Evidence(embeds[:, SYSTEM : SYSTEM + VISUAL], layout)


def variants(options: argparse.Namespace, batch: int) -> dict[str, Callable[[], object]]:
    """Name -> one reading; the first is what all others are compared to."""
    dtype = getattr(torch, options.dtype)
    model = decoder(options.layers, options.width, "sdpa", dtype, options.device)
    length = SYSTEM + VISUAL + QUESTION
    embeds = torch.randn(batch, length, options.width, dtype=dtype, device=options.device)
    evidence, column = evidence_of(embeds), torch.arange(length).expand(batch, -1)
    first, rest = (decoder(n, options.width, "sdpa", dtype, options.device) for n in (AT, options.layers - AT))

    def plain() -> object:
        return model(inputs_embeds=embeds, past_key_values=DynamicCache()).last_hidden_state

    def staged(scorer: TextAttention | Random, kept: int) -> object:
        pruner = Pipeline((scorer,), Mean(), Even(), TopK(), across="sample")
        with LlmStages(model, evidence, column, [Stage(f"llm:{AT}", pruner, Budget(kept))]):
            return plain()

    def oracle() -> object:
        first(inputs_embeds=embeds, past_key_values=DynamicCache())
        return rest(inputs_embeds=embeds[:, : length - VISUAL + KEPT], past_key_values=DynamicCache())

    return {
        "plain": plain,
        f"FastV, {KEPT} stay": lambda: staged(TextAttention(-1), KEPT),
        f"all text asks, {KEPT} stay": lambda: staged(TextAttention(-1, "text"), KEPT),
        f"ahead, {KEPT} stay": lambda: staged(TextAttention(AT), KEPT),
        f"at random, {KEPT} stay": lambda: staged(Random(), KEPT),
        "FastV, nothing leaves": lambda: staged(TextAttention(-1), VISUAL),
        "oracle": oracle,
    }


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
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
    print(coverage(options.rounds), *head(HEAD), sep="\n")
    for batch in options.batch:
        taken = rounds(variants(options, batch), options.rounds, options.device)
        plain = taken["plain"]
        for name, times in taken.items():
            cells = [str(batch), name]
            for unit in (0, 1):
                own, other = ([t[unit] for t in one] for one in (times, plain))
                cells += [f"{median(own):.3f}", ratio(own, other)]
            print(line(cells))


if __name__ == "__main__":
    main()
