"""`vtcframe explain`: draw the tokens of a picture or video that a pruner keeps, and write the numbers as JSON."""

import argparse
from pathlib import Path

import yaml

from vtcframe.config.short_names import expand_text
from vtcframe.config.type_hints import Kind
from vtcframe.errors import UsageError


def main(arguments: list[str]) -> int:
    """Write a PNG and a JSON file for one question, and return the exit status.

    Raises UsageError for arguments that cannot be used.
    """
    options = _parser().parse_args(arguments)
    if not (options.image or options.video):
        raise UsageError("there is no picture and no video: give --image or --video")
    if options.out.suffix.lower() != ".png":
        raise UsageError(
            f"--out {options.out} does not end in .png: give a name that does; the numbers go to a .json file"
        )
    # Reports a misspelled pruner before torch is imported.
    pruner = expand_text(_read_pruner(options.pruner), Kind("pruner"), "pruner")
    from vtcframe.config.parser import make_pruner
    from vtcframe.core.budget import Budget
    from vtcframe.explore.explainer import explain

    try:
        budget = Budget(options.tokens, options.ratio)
    except ValueError as error:
        raise UsageError(f"--tokens and --ratio: {error}") from error
    explanation = explain(
        options.model,
        options.question,
        make_pruner(pruner),
        budget,
        images=options.image,
        video=options.video,
        dtype=options.dtype,
        device=options.device,
        attention=options.attn,
    )
    numbers = explanation.save(options.out)
    for name in ("unpruned", "pruned"):
        answer = explanation.numbers[name]
        print(f"{name:9} {answer['visual_tokens']:6} visual tokens  {answer['answer']}")
    print(f"written to {options.out} and {numbers}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vtcframe explain",
        description="Draw the tokens of pictures or of a video that a pruner keeps: a PNG and a JSON file.",
    )
    parser.add_argument(
        "--model", default="vtcframe:tiny", help="folder or name on the Hugging Face Hub (default: the bundled model)"
    )
    parser.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="FILE", help="pictures that the question is about"
    )
    parser.add_argument(
        "--video",
        nargs="+",
        default=[],
        metavar="FRAME",
        help="frames in order, a folder of frames, or a GIF or WebP file",
    )
    parser.add_argument("--question", required=True, help="text of the question")
    parser.add_argument(
        "--pruner",
        default="{name: VtcCls, last: 3}",
        metavar="SPEC",
        help='name, YAML or YAML file (default: "%(default)s")',
    )
    parser.add_argument("--tokens", type=int, help="number of visual tokens to keep")
    parser.add_argument("--ratio", type=float, help="fraction of the visual tokens to keep, instead of --tokens")
    parser.add_argument("--out", type=Path, default=Path("explain.png"), help="file to write (default: %(default)s)")
    parser.add_argument("--attn", help="attention kernel, for example sdpa or eager")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="type of the weights"
    )
    parser.add_argument("--device", default="cpu", help="device, for example cuda")
    return parser


def _read_pruner(spec: str) -> str:
    """Return the content of a YAML or JSON file; any other text is returned unchanged."""
    path = Path(spec)
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        return spec
    try:
        content = path.read_text(encoding="utf-8")
        yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read the pruner {path}: {' '.join(str(error).split())}") from error
    return content
