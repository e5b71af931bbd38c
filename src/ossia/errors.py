"""Every error ossia raises on purpose.

    OssiaError                 what the caller can mend; the command line prints it in one line and exits with code 2
    ├── ConfigError            a configuration key is unknown, missing, contradictory or out of range
    ├── CheckpointError        a model folder, a shard, a header or a tensor is not what it should be
    ├── TokenizerError         a vocabulary is missing, foreign or incomplete
    ├── HarmonyError           a conversation cannot be rendered: unknown role or effort, malformed message or schema
    ├── RequestError           a request cannot be honoured: prompt longer than the context, sampling value out of range
    ├── BusyError              no room for another request just now: the queue is full, or the engine is closing
    ├── KernelError            an operand has the wrong shape or type, or an implementation is not to be had here
    ├── TrainingError          a run diverged, or its saved state cannot be resumed
    ├── DataError              a training or evaluation record is malformed (names file, line and field)
    └── StorageError           the disk refused: full, read-only, or the target already exists

A message says what is wrong, names the file, key or tensor, and says what to do, in one line.
What a *model* writes never raises: the harmony parser mends it and reports what it assumed.
"""


class OssiaError(Exception):
    """Base of every deliberate error; str(error) is one line fit to show to a user."""


class ConfigError(OssiaError):
    """A configuration key is unknown, missing, contradictory or out of range."""


class CheckpointError(OssiaError):
    """A model folder, a shard, a header or a tensor is not what it should be."""


class TokenizerError(OssiaError):
    """A vocabulary is missing, foreign or incomplete."""


class HarmonyError(OssiaError):
    """A conversation cannot be rendered: unknown role or effort, malformed message or schema."""


class RequestError(OssiaError):
    """A request cannot be honoured: prompt longer than the context, sampling value out of range."""


class BusyError(OssiaError):
    """No room for another request just now: the queue is full, or the engine is closing."""


class KernelError(OssiaError):
    """An operand has the wrong shape or type, or an implementation is not to be had here."""


class TrainingError(OssiaError):
    """A run diverged, or its saved state cannot be resumed."""


class DataError(OssiaError):
    """A training or evaluation record is malformed; names file, line and field."""


class StorageError(OssiaError):
    """The disk refused: full, read-only, or the target already exists."""
