"""`vtcframe predict`: the command line and configuration files, checked against the classes that run them."""

import logging
import sys
import warnings
from typing import Any

import yaml
from jsonargparse import get_loader
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from transformers.utils.logging import disable_progress_bar

from vtcframe.config.arguments import expand_arguments
from vtcframe.config.parser import Parser, shorten_error
from vtcframe.config.short_names import shorten
from vtcframe.data.datamodule import Questions
from vtcframe.errors import ComponentError, UsageError
from vtcframe.registry import plugin_prefix
from vtcframe.runs.predictor import Predictor
from vtcframe.runs.writer import Writer

LOGGER = logging.getLogger(__name__)
SUCCESS, SAMPLES_FAILED = 0, 1  # exit status
SECTIONS = {"model": Predictor, "data": Questions, "writer": Writer, "trainer": Trainer}  # of a configuration
TRAINER_DEFAULTS = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}


class PredictParser(Parser, LightningArgumentParser):
    """The parser of all sections, which prints configurations with short names."""

    sections: dict[str, Any] | None = None  # of the outer parser; the parsers of components have none

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Return a configuration as YAML."""
        text = super().dump(*args, **kwargs)
        if self.sections is None:
            return text
        return yaml.safe_dump(shorten(get_loader("yaml")(text), self.sections), sort_keys=False)


class Command(LightningCLI):
    """Model, data, writer and trainer of one configuration."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the writer, and pass its progress to the data module and the predictor."""
        parser.add_lightning_class_args(Writer, "writer")
        for group in ("data", "model"):
            parser.link_arguments("writer.progress", f"{group}.progress", apply_on="instantiate")
        if isinstance(parser, PredictParser):
            parser.sections = SECTIONS

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments of `main`, not sys.argv."""
        self.config = parser.parse_args(args)


def main(arguments: list[str]) -> int:
    """Answer the questions of a configuration and return the exit status: 0, or 1 if samples failed."""
    failed = run(arguments)
    if not failed:
        return SUCCESS
    names = ", ".join(failed[:10]) + (f" and {len(failed) - 10} more" if len(failed) > 10 else "")
    LOGGER.error("%d samples failed, their rows say why: %s", len(failed), names)
    return SAMPLES_FAILED


def run(arguments: list[str]) -> list[str]:
    """Predict and return the ids of the samples that failed. UsageError for a configuration that cannot be used."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # no tips
    disable_progress_bar()  # of loading weights
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")  # how many is the user's option
        warnings.filterwarnings("ignore", message=".*across ranks is zero")  # every question was answered earlier
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")  # Lightning calls them itself
        command = _command(arguments)
        try:
            command.trainer.predict(command.model, datamodule=command.datamodule, return_predictions=False)
        except ComponentError as error:  # of the benchmark: errors of pruners are in their rows
            raise UsageError(str(error)) from error
    return command.config_init["writer"].failed


def _command(arguments: list[str]) -> Command:
    expanded = expand_arguments(arguments, SECTIONS)
    try:
        command = Command(
            Predictor,
            Questions,
            args=expanded,
            run=False,  # no subcommands, so that keys in errors are those of the YAML
            parser_class=PredictParser,
            parser_kwargs={
                "prog": "vtcframe predict",
                "description": "Answer questions about pictures with fewer visual tokens.",
            },
            trainer_defaults={**TRAINER_DEFAULTS, "enable_progress_bar": sys.stdout.isatty()},
            seed_everything_default=0,
            save_config_callback=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (ValueError, TypeError, LookupError, MisconfigurationException) as error:
        prefix = "" if isinstance(error, ComponentError) else plugin_prefix(error)
        raise UsageError(prefix + shorten_error(str(error)).removeprefix("  - " if prefix else "")) from error
    return command
