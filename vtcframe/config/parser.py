"""Objects from configurations by their type hints, through jsonargparse, with errors of a line or two."""

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from vtcframe.core.stages import Pruner
from vtcframe.errors import UsageError

NOISE = re.compile(
    r"\s*(Does not validate against any of the Union|Subtypes: |Errors:$|- Expected a <class 'NoneType'>"
    r"|Given value type: |Given value: [{\[]|Given value: (Namespace|NestedArg)\()"
)


class Parser(ArgumentParser):
    """A parser whose errors are a line or two, without the usage of every option before them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError. Inner parsers leave that to the outer one, which has the key."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(shorten_error(message)) from ex


def shorten_error(message: str) -> str:
    """Keep the keys and the cause; leave out the alternatives of a union and values that are whole sections."""
    return "\n".join(line for line in message.splitlines() if not NOISE.match(line))


def instantiate(hints: Mapping[str, Any], config: Mapping[str, Any], prog: str | None = None) -> dict[str, Any]:
    """Make the objects of a configuration with expanded names: key -> object for the keys that it has.

    `hints` are key -> type hint. UsageError for what does not match them, and what the classes themselves raise.
    """
    parser = Parser(prog=prog)
    keys = [key for key in hints if key in config]
    for key in keys:
        parser.add_argument(f"--{key}", type=hints[key])
    make = getattr(parser, "instantiate", parser.instantiate_classes)  # the older name until jsonargparse 4.49
    objects = make(parser.parse_object(dict(config)))
    return {key: objects[key] for key in keys}


def make_pruner(config: Any) -> Pruner:
    """Make a pruner from its configuration with expanded names. UsageError for options that it refuses."""
    try:
        return instantiate({"pruner": Pruner}, {"pruner": config})["pruner"]
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
