"""Benchmark the readers of a tap against the attention call that they observe: one call, 16 heads of width 64.

    python perf/reducers.py [--tokens 576 1024 4096] [--rounds 15] [--threads 1] [--dtype float32] [--device cuda]

Prints one Markdown row for each number of tokens and each reader: median CPU and wall milliseconds, the median over
rounds of the ratio to scaled_dot_product_attention of the same shape, and of the ratio to the same reader at the first
number of tokens. The last ratio shows whether a reader is linear or quadratic in the number of tokens. Each round runs
everything once, in shuffled order. Intervals are order statistics of the median: the narrowest with a coverage of at
least 95 %, or min to max with too few rounds. On a GPU, use the wall seconds.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vtcframe.core.encoder_readers import MeanQuery, QueryRow, ReceivedAttention
from vtcframe.core.kernel_call import KernelCall
from vtcframe.machine import describe_machine
from vtcframe.profiling.timing import describe_rounds, estimate, format_head, format_row, ratio, time_rounds

HEADS, WIDTH = 16, 64


def variants(tokens: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Tensor]]:
    """Return one call for each reader, all on the same tensors, with the strides of a model's projections."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, tokens, HEADS, WIDTH, device=device, dtype=dtype).transpose(2, 3).unbind()
    call = KernelCall(query, key, None, WIDTH**-0.5, False, None)
    return {
        "class row": lambda: QueryRow()(call),
        "mean query": lambda: MeanQuery()(call),
        "received": lambda: ReceivedAttention()(call),
        "SDPA": lambda: F.scaled_dot_product_attention(query, key, value),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 1024, 4096])
    parser.add_argument(
        "--rounds", type=int, default=15, help="number of rounds; 6 or more give intervals of at least 95 %%"
    )
    parser.add_argument("--threads", type=int, help="number of CPU threads of torch (default: torch's choice)")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    setting = f"batch 1, {HEADS} heads of width {WIDTH}, {options.dtype}"
    print(f"{describe_machine(options.device)}; {setting}; {describe_rounds(options.rounds)}", "", sep="\n", flush=True)
    with torch.no_grad():
        calls = {
            (tokens, name): call
            for tokens in options.tokens
            for name, call in variants(tokens, getattr(torch, options.dtype), options.device).items()
        }
        times_of = {
            key: list(zip(*pairs, strict=True))
            for key, pairs in time_rounds(calls, options.rounds, options.device).items()
        }
    first = options.tokens[0]
    columns = ("CPU ms", "wall ms", "CPU / SDPA", "wall / SDPA", f"CPU / {first} tokens", f"wall / {first} tokens")
    print(*format_head(("tokens", "reader", *columns)), sep="\n")
    for (tokens, name), times in times_of.items():
        cells = [estimate([1000 * x for x in seconds]) for seconds in times]
        for baseline in (times_of[tokens, "SDPA"], times_of[first, name]):
            cells += [ratio(seconds, others) for seconds, others in zip(times, baseline, strict=True)]
        print(format_row((str(tokens), name, *cells)))


if __name__ == "__main__":
    main()
