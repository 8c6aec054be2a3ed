"""The exceptions of vtcframe."""


class UsageError(ValueError):
    """An error that the user can correct; the message names the problem and its correction."""


class UnfinishedError(RuntimeError):
    """A run was interrupted. Its answers so far are saved; rerun the same command to resume."""


class ComponentError(ValueError):
    """A component raised an exception or returned a wrong result. Its exception is chained as `__cause__`."""
