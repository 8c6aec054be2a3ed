"""What readers of a tap cost beside the attention whose query and key they read, one call of 16 heads of width 64.

    python perf/reducers.py [--tokens 576 1024 4096] [--rounds 15] [--threads 1] [--dtype float32] [--device cuda]

Prints one Markdown row for each number of tokens and each reader: median CPU and wall milliseconds, the median over
rounds of the ratio to scaled_dot_product_attention of the same shape, and of the ratio to the same reader at the first
number of tokens: what is linear grows as the tokens do, what is quadratic as their square. Each round runs everything
once, in a shuffled order. Intervals are order statistics of the median: the narrowest that covers it with at least
95 %, or min to max where the rounds are too few. On a GPU read the wall seconds.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vtcframe.core.encoder_readers import MeanQuery, QueryRow, ReceivedAttention
from vtcframe.core.kernel_call import KernelCall
from vtcframe.machine import describe_machine
from vtcframe.profiling.timing import coverage, estimate, head, line, ratio, rounds

HEADS, WIDTH = 16, 64


def variants(tokens: int, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Tensor]]:
    """Name -> one call, all on the same tensors, strided as the projections of a model leave them."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[576, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=15, help="6 or more give intervals of at least 95 %%")
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: its own choice)")
    parser.add_argument("--dtype", default="float32", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    about = f"batch 1, {HEADS} heads of width {WIDTH}, {options.dtype}"
    print(f"{describe_machine(options.device)}; {about}; {coverage(options.rounds)}", "", sep="\n", flush=True)
    with torch.no_grad():
        calls = {
            (tokens, name): call
            for tokens in options.tokens
            for name, call in variants(tokens, getattr(torch, options.dtype), options.device).items()
        }
        taken = {
            at: list(zip(*pairs, strict=True)) for at, pairs in rounds(calls, options.rounds, options.device).items()
        }
    first = options.tokens[0]
    columns = ("CPU ms", "wall ms", "CPU / SDPA", "wall / SDPA", f"CPU / {first} tokens", f"wall / {first} tokens")
    print(*head(("tokens", "reader", *columns)), sep="\n")
    for (tokens, name), times in taken.items():
        cells = [estimate([1000 * x for x in mine]) for mine in times]
        for base in (taken[tokens, "SDPA"], taken[first, name]):
            cells += [ratio(mine, other) for mine, other in zip(times, base, strict=True)]
        print(line((str(tokens), name, *cells)))


if __name__ == "__main__":
    main()
