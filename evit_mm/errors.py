"""The errors that a user can mend; tools print them as one message, without a traceback."""


class EvitError(ValueError):
    """Base of the package's errors; the message names the file, the field and the mend."""


class CheckpointError(EvitError):
    """A checkpoint cannot be read or does not fit."""


class ConfigError(EvitError):
    """A config cannot be read or asks for something that does not exist."""


class DataError(EvitError):
    """A data set or an image cannot be used as it is."""
