"""`vtcframe predict`: what the command line gives, checked against the classes that run it."""

import logging
import re
import sys
import warnings
from typing import Any, NoReturn

import yaml
from jsonargparse import set_dumper, set_loader
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from transformers.utils.logging import disable_progress_bar

from vtcframe.config import UsageError, load_components, parse, shorten
from vtcframe.data import Questions
from vtcframe.faults import ComponentError
from vtcframe.predict import Predictor
from vtcframe.registry import raised_in
from vtcframe.writer import Writer

NOISE = re.compile(
    r"\s*(Does not validate against any of the Union|Subtypes: |Errors:$|- Expected a <class 'NoneType'>"
    r"|Given value type: |Given value: [{\[]|Given value: (Namespace|NestedArg)\()"
)
MODE = "vtcframe"  # of jsonargparse: YAML with short names
CALM = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}

set_loader(MODE, parse, exceptions=(yaml.YAMLError,))
set_dumper(MODE, lambda config: yaml.safe_dump(shorten(config), sort_keys=False))


class Parser(LightningArgumentParser):
    """Tells an error in a line or two, without the usage of every option before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise UsageError. Inner parsers leave it to the outer one, which knows the key."""
        if not self.exit_on_error:
            super().error(message, ex)
        raise UsageError(_brief(message)) from ex


def _brief(message: str) -> str:
    """Keep the keys and what is wrong; drop the other types that would have done and values that are whole sections."""
    return "\n".join(line for line in message.splitlines() if not NOISE.match(line))


class Command(LightningCLI):
    """Model, data, writer and trainer of one configuration."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the writer."""
        parser.add_lightning_class_args(Writer, "writer")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what `main` was given, whatever stands in sys.argv."""
        self.config = parser.parse_args(args)


def run(arguments: list[str]) -> list[str]:
    """Predict and return the ids of the samples that failed. UsageError for a configuration that cannot be used."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no tips
    disable_progress_bar()  # of loading weights
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")  # how many is the user's option
        warnings.filterwarnings("ignore", message=".*across ranks is zero")  # all was answered earlier
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")  # theirs to mend
        command = _command(arguments)
        try:
            command.trainer.predict(command.model, datamodule=command.datamodule, return_predictions=False)
        except ComponentError as error:  # of the benchmark: what pruners do wrong stands in their rows
            raise UsageError(str(error)) from error
    return command.config_init["writer"].failed


def _command(arguments: list[str]) -> Command:
    load_components(arguments)
    try:
        command = Command(
            Predictor,
            Questions,
            args=arguments,
            run=False,  # no subcommands, so that keys in errors are those of the YAML
            parser_class=Parser,
            parser_kwargs={
                "parser_mode": MODE,
                "prog": "vtcframe predict",
                "description": "Answer questions about pictures with fewer visual tokens.",
            },
            trainer_defaults={**CALM, "enable_progress_bar": sys.stdout.isatty()},
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (ValueError, TypeError, LookupError, MisconfigurationException) as error:
        whose = "" if isinstance(error, ComponentError) else raised_in(error)
        raise UsageError(whose + _brief(str(error)).removeprefix("  - " if whose else "")) from error
    return command
