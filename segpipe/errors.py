"""The errors a user can meet. Each message is one line: what came, what was wanted, what to do."""

from errno import ELOOP, ENAMETOOLONG, EROFS


class UserError(Exception):
    """Something the user must change: a flag, a path, a credential. Exit code 2."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))  # a file's name may have line breaks

    def __reduce__(self) -> tuple[type["UserError"], tuple[str]]:
        return UserError, (str(self).partition("\n")[0],)  # without the lines that Ray Data appends


def os_error_text(error: OSError) -> str:
    """One line: which file, and what is wrong with it; of some errors the text is a path alone."""
    if error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
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


class Unfinished(Exception):
    """A run ends with inputs open; the same command goes on. Exit code 1."""


class StoreDown(OSError):
    """A store did not answer for as long as patience lasts."""


class ChangedObject(OSError):
    """An object is no longer the version that was listed."""
