"""The command-line parser: YAML with short names, and errors of a line or two."""

import re
from typing import NoReturn

import yaml
from jsonargparse import set_dumper, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from vtcframe.config.short_names import parse, shorten
from vtcframe.core.stages import Pruner
from vtcframe.errors import UsageError

NOISE = re.compile(
    r"\s*(Does not validate against any of the Union|Subtypes: |Errors:$|- Expected a <class 'NoneType'>"
    r"|Given value type: |Given value: [{\[]|Given value: (Namespace|NestedArg)\()"
)


MODE = "vtcframe"  # of jsonargparse: YAML with short names


set_loader(MODE, parse, exceptions=(yaml.YAMLError,))
set_dumper(MODE, lambda config: yaml.safe_dump(shorten(config), sort_keys=False))


class Parser(LightningArgumentParser):
    """Tells an error in a line or two, without the usage of every option before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError. Inner parsers leave it to the outer one, which knows the key."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(shorten_error(message)) from ex


def shorten_error(message: str) -> str:
    """Keep the keys and what is wrong; drop the other types that would have done and values that are whole sections."""
    return "\n".join(line for line in message.splitlines() if not NOISE.match(line))


def pruner_of(option: str) -> Pruner:
    """Make the pruner of a resolved `--pruner=...`, checked as in the configuration of predict."""
    parser = Parser(parser_mode=MODE, prog="vtcframe explain")
    parser.add_argument("--pruner", type=Pruner)
    try:
        given = parser.parse_args([option])
        make = getattr(parser, "instantiate", parser.instantiate_classes)  # the older name until jsonargparse 4.49
        return make(given)["pruner"]
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
