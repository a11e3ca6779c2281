"""What Ray and libraries raise -> the error of ours behind it, and one line of it."""

from __future__ import annotations

from ray.exceptions import RayError

from segpipe.errors import Unfinished, UserError, first_cause, os_error_text


def own_error(error: BaseException | None) -> Exception | None:
    """The error of ours, or of a file system, for which Ray or a library gave up; None if none.

    Its message is one line: Ray Data appends advice about settings of its own.
    """
    while error is not None:
        if isinstance(error, OURS) and not isinstance(error, RayError):
            if isinstance(error, OSError):
                return _own_os_error(error)
            return next(kind for kind in OURS if isinstance(error, kind))(first_line(error))
        error = getattr(error, "cause", None) or error.__cause__
    return None


OURS = (UserError, Unfinished, OSError)


def _own_os_error(error: OSError) -> OSError:
    """The same kind of error with one line that names the file and says what is wrong."""
    kinds = (PermissionError, IsADirectoryError, NotADirectoryError, OSError)
    own = next(kind for kind in kinds if isinstance(error, kind))(os_error_text(error))
    own.errno = error.errno
    return own


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The last that the first cause of an error says."""
    error = first_cause(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
