# SPDX-License-Identifier: MIT
"""The errors that a user can cause: entry points print their text and no traceback.

A message names the thing, the value that was given, what was expected and what to do. Arguments of
functions that are called from code (operators, layers) raise the built-in ValueError or TypeError.
"""


class OpensegError(Exception):
    """Base of the errors that are the user's to mend: entry points print them and exit with 2."""


class ConfigError(OpensegError):
    """A configuration file or override that cannot be used."""


class DataError(OpensegError):
    """A data set, an image or a label map that cannot be used."""


class CheckpointError(OpensegError):
    """A checkpoint that cannot be read, written, or does not fit the network."""


class OutputError(OpensegError):
    """A folder or file that cannot be written."""


class TrainingError(OpensegError):
    """A training run that cannot go on, such as one whose loss is not finite."""
