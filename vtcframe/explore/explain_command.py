"""`vtcframe explain`: draws which tokens of a picture or video a pruner keeps, and writes the numbers beside it."""

import argparse
from pathlib import Path

import yaml

from vtcframe.config.short_names import expand_text
from vtcframe.config.type_hints import Kind
from vtcframe.errors import UsageError


def main(arguments: list[str]) -> int:
    """Write a PNG and a JSON file about one question, and return the exit status.

    UsageError for arguments that cannot be used.
    """
    parsed = _options().parse_args(arguments)
    if not (parsed.image or parsed.video):
        raise UsageError("there is nothing to explain: give --image or --video")
    if parsed.out.suffix.lower() != ".png":
        raise UsageError(
            f"--out {parsed.out} is no .png: the picture is written there, the numbers to a .json beside it"
        )
    pruner = expand_text(
        _read_pruner(parsed.pruner), Kind("pruner"), "pruner"
    )  # reports a typo before torch is imported
    from vtcframe.config.parser import make_pruner
    from vtcframe.core.budget import Budget
    from vtcframe.explore.explain import explain

    try:
        budget = Budget(parsed.tokens, parsed.ratio)
    except ValueError as error:
        raise UsageError(f"--tokens and --ratio: {error}") from error
    placement = parsed.dtype, parsed.device, parsed.attn
    explanation = explain(
        parsed.model, parsed.question, make_pruner(pruner), budget, parsed.image, parsed.video, *placement
    )
    numbers = explanation.save(parsed.out)
    for name in ("unpruned", "pruned"):
        answer = explanation.numbers[name]
        print(f"{name:9} {answer['visual_tokens']:6} visual tokens  {answer['answer']}")
    print(f"written to {parsed.out} and {numbers}")
    return 0


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="vtcframe explain",
        description="Draw which tokens of pictures or of a video a pruner keeps: a PNG, and a JSON of the same name.",
    )
    options.add_argument(
        "--model", default="vtcframe:tiny", help="folder or name on the Hugging Face Hub (default: the bundled model)"
    )
    options.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="FILE", help="pictures that the question is about"
    )
    options.add_argument(
        "--video", nargs="+", default=[], metavar="FRAME", help="frames in their order, a folder of them, a GIF or WebP"
    )
    options.add_argument("--question", required=True, help="text of the question")
    options.add_argument(
        "--pruner",
        default="{name: VtcCls, last: 3}",
        metavar="SPEC",
        help='name, YAML or YAML file (default: "%(default)s")',
    )
    options.add_argument("--tokens", type=int, help="number of visual tokens that are kept")
    options.add_argument("--ratio", type=float, help="fraction of the visual tokens that is kept, instead of --tokens")
    options.add_argument("--out", type=Path, default=Path("explain.png"), help="file to write (default: %(default)s)")
    options.add_argument("--attn", help="attention kernel, for example sdpa or eager")
    options.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the weights"
    )
    options.add_argument("--device", default="cpu", help="where to run, for example cuda")
    return options


def _read_pruner(spec: str) -> str:
    """Return the content of a YAML file; a name or YAML is returned as it is."""
    path = Path(spec)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return spec
    try:
        content = path.read_text(encoding="utf-8")
        yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the pruner {path}: {' '.join(str(error).split())}") from error
    return content
