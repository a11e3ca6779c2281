"""The errors a user can meet. Each message is one line: what came, what was wanted, what to do."""


class UserError(Exception):
    """Something the user must change: a flag, a path, a credential. Exit code 2."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.splitlines()))  # a file's name may have line breaks

    def __reduce__(self) -> tuple[type["UserError"], tuple[str]]:
        return UserError, (str(self).partition("\n")[0],)  # without the lines that Ray Data appends


class RejectedImage(Exception):
    """These bytes cannot become a mask, whoever tries again. In bulk it becomes a row."""


class Unfinished(Exception):
    """A run ends with inputs open; the same command goes on. Exit code 1."""


class StoreDown(OSError):
    """A store did not answer for as long as patience lasts."""


class ChangedObject(OSError):
    """An object is no longer the version that was listed."""


class NotNow(OSError):
    """An object that cannot be read until someone does something about it; its store is well."""
