"""Every error that raydkm raises on purpose: a sentence that says what is wrong and what to do next."""


class RaydkmError(Exception):
    """Base of all of raydkm's own errors; the CLI prints it as one sentence and exits with its code.

    The code 2 stands for what the user gave: the same command fails again. The code 3 stands for machines, storage and
    services: the same command may succeed later.
    """

    exit_code = 2


class ConfigError(RaydkmError, ValueError):
    """A parameter is unknown, out of range or contradicts another."""


class InputError(RaydkmError, ValueError):
    """The data cannot be used; the message names the file, the row or the column."""


class UnreadableError(InputError):
    """Storage did not deliver what is there; another time it may."""

    exit_code = 3


class ModelError(RaydkmError, ValueError):
    """A model artefact is missing, damaged or of another schema version."""


class OutputError(RaydkmError, OSError):
    """The output place exists already or cannot be written."""


class EngineError(RaydkmError, RuntimeError):
    """A distributed run broke one of its promises (rows lost, ranks diverged, workers failed)."""

    exit_code = 3


class WorkerLostError(EngineError):
    """A worker did not come to where the others waited for it. The run is started again from its last checkpoint.

    `names_the_lost` tells whether the message does: the worker that raises this may not know.
    """

    def __init__(self, message: str, *, names_the_lost: bool = False):
        super().__init__(message)
        self.names_the_lost = names_the_lost
