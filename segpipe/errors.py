"""The errors a user can meet. Each message is one line: what came, what was wanted, what to do."""

import logging
import traceback
from collections.abc import Sequence
from enum import StrEnum
from errno import ELOOP, ENAMETOOLONG, EROFS
from pathlib import Path

PACKAGE = Path(__file__).absolute().parent
logger = logging.getLogger(__name__)


class UserError(Exception):
    """Something the user must change: a flag, a path, a credential. Exit code 2."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))  # a file's name may have line breaks

    def __reduce__(self) -> tuple[type["UserError"], tuple[str]]:
        return UserError, (str(self).partition("\n")[0],)  # without the lines that Ray Data appends


class Fault(StrEnum):
    """Why an input is rejected: a code that never changes, the `error_code` of its row."""

    meaning: str
    """In words, as docs/results.md lists them."""

    def __new__(cls, code: str, meaning: str = "") -> "Fault":
        fault = str.__new__(cls, code)
        fault._value_ = code
        fault.meaning = meaning
        return fault

    EMPTY_FILE = "empty_file", "The file has no bytes."
    UNKNOWN_FORMAT = "unknown_format", "The content is no image format that is read."
    UNSUPPORTED_PIXELS = "unsupported_pixels", "The format is read, but not pixels of this kind."
    DAMAGED_FILE = "damaged_file", "The file is cut off or damaged."
    UNREADABLE_FILE = "unreadable_file", "The file is damaged, or of a variant that is not read."
    OVERSIZED_METADATA = "oversized_metadata", "A text or colour profile unpacks to too many bytes."
    FILE_TOO_LARGE = "file_too_large", "The file has more than 1 GiB."
    TOO_MANY_PIXELS = "too_many_pixels", "The image or a tile has more than --max-megapixels."
    TOO_MANY_SCANS = "too_many_scans", "A progressive JPEG has more than 100 scans."
    TOO_SMALL = "too_small", "A side has less than 16 px."
    INVALID_PIXEL_VALUES = "invalid_pixel_values", "Values are no numbers, or out of range."
    NO_FIELD_OF_VIEW = "no_field_of_view", "There is no bright disc or field on the image."
    SIZE_MISMATCH = (
        "size_mismatch",
        "Of `segpipe measure`: the mask has another size than its photograph or field of view.",
    )
    NO_PAIR = (
        "no_pair",
        "Of `segpipe measure`: no photograph or field of view is named like the mask, or several.",
    )
    NOT_A_PHOTOGRAPH = "not_a_photograph", "A DICOM object of a class that is no photograph."
    SEGPIPE_MASK = "segpipe_mask", "A mask as segpipe writes them, not a photograph."
    MISSING_DICOM_EXTRA = (
        "missing_dicom_extra",
        "A DICOM file, and not all of segpipe[dicom] that it needs is installed.",
    )
    MISSING_EXTRA = "missing_extra", "A format of an extra of segpipe that is not installed."
    TOO_MUCH_MEMORY = "too_much_memory", "The decoder reached its limit of memory twice."
    TOO_SLOW = "too_slow", "The decoder reached its limit of CPU time twice."
    DECODER_CRASHED = "decoder_crashed", "The decoder crashed twice on this file."
    NOT_FOUND = "not_found", "The input is not there."
    PERMISSION_DENIED = "permission_denied", "The input may not be read."
    INTERNAL_ERROR = "internal_error", "An error of segpipe; its log has the traceback."


def some_of(names: Sequence[str], most: int = 5) -> str:
    """The first of these names and how many more there are, as "a, b, c and 12 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name if len(name) <= 40 else f"{name[:37]}..." for name in names[:most]) + more


def os_error_text(error: OSError) -> str:
    """One line: which file, and what is wrong with it; of some errors the text is a path alone."""
    if error.errno is not None and error.filename is not None:
        name = error.filename2 or error.filename  # the former, of two, is a temporary file's
        return f"{name}: {error.strerror}"
    text = next(iter(str(error).splitlines()), type(error).__name__)
    for kind, wrong in WRONG.items():
        if isinstance(error, kind) and error.errno is None and ": " not in text:
            return f"{text}: {wrong}"
    return text


def must_change(error: OSError) -> bool:
    """Whether the same command would meet this error again."""
    kinds = (PermissionError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, kinds) or error.errno in (EROFS, ENAMETOOLONG, ELOOP)


WRONG: dict[type[OSError], str] = {
    FileNotFoundError: "no such file",
    PermissionError: "permission denied",
    IsADirectoryError: "is a folder",
    NotADirectoryError: "is no folder",
}


class RejectedImage(Exception):
    """These bytes cannot become a mask, whoever tries again. In bulk it becomes a row."""

    def __init__(self, fault: Fault, sentence: str) -> None:
        super().__init__(fault, sentence)
        self.fault = fault

    def __str__(self) -> str:
        """The sentence."""
        return str(self.args[1])


def internal_error(error: Exception) -> RejectedImage:
    """What an image is rejected with where our own code failed; the log gets the traceback."""
    logger.error("%s", "".join(traceback.format_exception(error)).rstrip("\n"))
    sentence = f"internal error ({type(error).__name__}{place_of(error)})"
    return RejectedImage(Fault.INTERNAL_ERROR, sentence)


def place_of(error: BaseException) -> str:
    """The last line of this package that an error passed, as " at segpipe/file.py:12", or ""."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE):
            return f" at {path.relative_to(PACKAGE.parent)}:{frame.lineno}"
    return ""


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised for in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class StarvedDecoder(Exception):
    """An image could not be decoded now: its node lacks memory or CPU. The input stays open."""


class Unfinished(Exception):
    """A run ends with inputs open; the same command resumes it. Exit code 1."""


class Skipped(Exception):
    """A run ends before it has done or written anything, as another one holds the output and
    `--if-locked skip` was given. Exit code 0.
    """


class StoreDown(OSError):
    """A store did not answer for as long as patience lasts."""


class ChangedObject(OSError):
    """An object is no longer the version that was listed."""


class NotNow(OSError):
    """An object that cannot be read until someone does something about it; its store is well."""
