"""Errors that a user can fix. The tools print them as one message without a traceback."""


class EvitError(ValueError):
    """Base class of the errors. The message states the file, the field and the fix."""


class CheckpointError(EvitError):
    """A checkpoint cannot be read or does not fit the model."""


class ConfigError(EvitError):
    """A config cannot be read or refers to something that does not exist."""


class DataError(EvitError):
    """A data set or an image cannot be used."""
