"""TODO: vtcframe/errors.py."""


class UsageError(ValueError):
    """Something the person at the command line can mend; the message says what and how."""


class UnfinishedError(RuntimeError):
    """A run that broke off. What it has answered is kept, and the same command goes on."""


class ComponentError(ValueError):
    """A component raised, or returned what its kind may not. What it raised is chained, as `__cause__`."""
