"""The errors a user can meet.

    CapfiltError          one line: what, where, what to do
    ├── ConfigError       a config, an option or a combination of them is wrong (exit 2)
    ├── InputError        an input, a shard or a sample cannot be read
    │   └── StalledError  nothing has come of an input for too long
    ├── ModelError        a checkpoint is missing, of another class, or unsafe to load (exit 2)
    ├── CommitError       an output disagrees with what its commit says
    └── TrainingError     a training cannot go on: a loss is not finite, memory is short (exit 1)

A bad *sample* never raises past its shard: it becomes a ledger row with a `Reason`
(`capfilt.record`).
"""


class CapfiltError(Exception):
    """An error whose message is for the person at the terminal; shown without a traceback."""


class ConfigError(CapfiltError):
    """A config, an option or a combination of them is wrong."""


class InputError(CapfiltError):
    """An input, a shard or a sample cannot be read."""


class StalledError(InputError):
    """Nothing has come of an input for too long: its reader or decoder hangs."""


class ModelError(CapfiltError):
    """A checkpoint is missing, of another class than needed, or unsafe to load."""


class CommitError(CapfiltError):
    """An output disagrees with its commit, or belongs to another run."""


class TrainingError(CapfiltError):
    """A training cannot go on, though its config and input are in order."""
