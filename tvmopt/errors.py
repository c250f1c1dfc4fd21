"""What a user can do wrong, each with one line that says what happened and how to mend it.

Every command turns a `TvmoptError` into one line on standard error and its `exit_code`. Anything else that
escapes is a bug of ours and keeps its traceback.
"""


class TvmoptError(Exception):
    """Base of all errors a user can mend. The message is one line: what is wrong, and how to mend it."""

    exit_code = 1


class UsageError(TvmoptError):
    """The command line contradicts itself or names a value that does not exist."""

    exit_code = 2


class ModelError(TvmoptError):
    """A model spec that names nothing, a factory that raises, a file that is not an exported program."""


class UnsupportedOperatorError(ModelError):
    """The model uses a PyTorch operator that cannot be imported; the message names it."""


class TargetError(TvmoptError):
    """An unknown target, or a target this machine cannot run."""


class LogError(TvmoptError):
    """A tuning log that is missing, damaged, or belongs to another model or target."""


class InputError(TvmoptError, ValueError):
    """An input of the wrong count, shape, dtype or device; the message names the expected one."""


class DataError(TvmoptError):
    """A data set that is not there or cannot be read."""


class OutputError(TvmoptError):
    """A file or directory that cannot be written."""


class VerificationError(TvmoptError):
    """A compiled kernel or network does not compute what PyTorch computes."""


class FleetError(TvmoptError):
    """No tracker or no server where machines to measure on were named, or machines that do not go together."""


class ArtifactError(TvmoptError):
    """An exported artifact that cannot be loaded, or was built for another machine."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """The first informative line of `error`, cut at `limit` characters, for use inside another message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
