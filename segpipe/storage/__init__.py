"""A URI -> a store: a local folder or an S3 prefix, listed in pages and written atomically.

A `Store` is small and picklable; it carries endpoint and region, never keys: every process takes
its credentials from its own environment.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from segpipe.errors import NotNow, StoreDown, UserError, os_error_text
from segpipe.flags import flag
from segpipe.storage.entry import (
    PATIENCE_S,
    PREFLIGHT_S,
    Entry,
    Listed,
    Source,
    Store,
    is_timed,
)
from segpipe.storage.local import LocalStore, naming_space

__all__ = [
    "PATIENCE_S",
    "PREFLIGHT_S",
    "Entry",
    "Listed",
    "Service",
    "Source",
    "Store",
    "check_places",
    "check_there",
    "is_timed",
    "local_path",
    "named",
    "naming_space",
    "open_store",
    "preflight",
    "read_uri",
    "s3_service",
]


Service = tuple[str | None, str | None]
"""Endpoint and region of an S3; None as botocore chooses them."""


def open_store(
    uri: str,
    patience_s: float = PATIENCE_S,
    anonymous: bool = False,
    service: Service | None = None,
) -> Store:
    """The store at `uri`: a local path or `s3://bucket/prefix`, at the `service` that this
    process's environment names where none is given.

    `anonymous` sends S3's requests unsigned, for a public bucket; a folder takes no notice of it.
    """
    _check_place(uri)
    if not uri.startswith("s3://"):
        return LocalStore(local_path(uri))
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    from segpipe.storage.s3 import S3Store  # boto3 takes 0.1 s to import

    endpoint, region = service or s3_service()
    return S3Store(bucket, prefix.removesuffix("/"), endpoint, region, patience_s, anonymous)


def s3_service() -> Service:
    """Which S3 this process's environment names."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return endpoint or None, region or None


def local_path(path: str) -> str:
    """The absolute path; a leading ~ that no shell has expanded (`--data=~/set`) is expanded."""
    return os.path.abspath(os.path.expanduser(path))


def check_places(config: Any, *names: str) -> None:
    """Raise UserError where one of these fields is neither a path nor a URI; None will do."""
    for name in names:
        value = getattr(config, name)
        for uri in value if isinstance(value, tuple) else (value,):
            try:
                _check_place("." if uri is None else uri)
            except UserError as error:
                raise UserError(f"{flag(name)} {error}") from error


def _check_place(uri: str) -> None:
    if not uri.strip() or "\0" in uri:
        text = uri.replace("\0", "\\0")
        raise UserError(f'"{text}": is no path, use a local path or s3://bucket/prefix')
    if uri.startswith("s3://"):
        if uri.removeprefix("s3://").startswith("/") or uri == "s3://":
            raise UserError(f"{uri}: no bucket named, use s3://bucket/prefix")
    elif "://" in uri or uri.lower().startswith("s3:"):
        raise UserError(f"{uri}: unknown kind of URI, use a local path or s3://bucket/prefix")


def check_there(source: Store, name: str) -> None:
    """Raise UserError, with the flag's name, where there is nothing to read."""
    if source.exists():
        return
    wrong = "holds no object"
    if not source.uri().startswith("s3://"):
        there = os.path.lexists(source.uri())  # a pipe, a device, a link to nothing
        wrong = "is neither a file nor a folder" if there else "does not exist"
    raise UserError(f"{name} {source.uri()}: {wrong}, check the path")


def read_uri(uri: str, anonymous: bool = False) -> bytes:
    """The bytes of the single object at `uri`."""
    _check_place(uri)
    if not uri.startswith("s3://"):
        uri = local_path(uri)
    folder, _, name = uri.rstrip("/").rpartition("/")
    place = folder or "/"
    if place == "s3:/":
        raise UserError(f"{uri}: is a bucket, name the file in it")
    try:
        return open_store(place, PREFLIGHT_S, anonymous).get(name)
    except FileNotFoundError as error:
        raise UserError(f"{uri}: no such file, check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"{uri}: is a folder, name the file in it") from error
    except PermissionError as error:
        raise UserError(f"{uri}: may not be read, check who may") from error
    except StoreDown as error:
        raise UserError(f"{error} (is the store up, and is AWS_ENDPOINT_URL right?)") from error
    except NotNow as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{os_error_text(error)}, check the path") from error


@contextmanager
def named(name: str) -> Iterator[None]:
    """A UserError of a store has the name of the flag that names it, or of the variable."""
    try:
        yield
    except UserError as error:
        if str(error).startswith(("--", "AWS_")):
            raise
        raise UserError(f"{name} {error}") from error


def preflight(data: Source, output: Store) -> None:
    """Learn within 30 s what the user must change: an unknown bucket, a wrong secret, ..."""
    with named("--data"):
        data.check_readable()
    with named("--output"):
        output.check_writable()
