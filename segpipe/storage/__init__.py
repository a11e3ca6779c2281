"""A URI -> a store: a local folder or an S3 prefix, listed in pages and written atomically.

A `Store` is small and picklable; it carries endpoint and region, never keys: every process takes
its credentials from its own environment.
"""

from __future__ import annotations

import os

from segpipe.errors import NotNow, StoreDown, UserError
from segpipe.storage.entry import PATIENCE_S, PREFLIGHT_S, Entry, Source, Store
from segpipe.storage.local import LocalStore, space_told

__all__ = [
    "PATIENCE_S",
    "Entry",
    "Source",
    "Store",
    "open_store",
    "preflight",
    "read_uri",
    "space_told",
]


def open_store(uri: str, patience_s: float = PATIENCE_S, anonymous: bool = False) -> Store:
    """The store at `uri`: a local path or `s3://bucket/prefix`.

    `anonymous` sends S3's requests unsigned, for a public bucket; a folder takes no notice of it.
    """
    if not uri.startswith("s3://"):
        if "://" in uri:
            raise UserError(f"{uri}: unknown kind of URI, use a local path or s3://bucket/prefix")
        return LocalStore(os.path.abspath(uri))
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise UserError(f"{uri}: no bucket named, use s3://bucket/prefix")
    from segpipe.storage.s3 import S3Store  # boto3 takes 0.1 s to import

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    prefix = prefix.removesuffix("/")
    return S3Store(bucket, prefix, endpoint or None, region or None, patience_s, anonymous)


def read_uri(uri: str, anonymous: bool = False) -> bytes:
    """The bytes of the single object at `uri`."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    place = folder or ("/" if uri.startswith("/") else ".")
    try:
        return open_store(place, PREFLIGHT_S, anonymous).get(name)
    except FileNotFoundError as error:
        raise UserError(f"{uri}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{uri}: is a folder, name the file in it") from error
    except PermissionError as error:
        raise UserError(f"{uri}: may not be read") from error
    except StoreDown as error:
        raise UserError(f"{error} (is the store up, and is AWS_ENDPOINT_URL right?)") from error
    except NotNow as error:
        raise UserError(str(error)) from error


def preflight(source: Source, output: Store) -> None:
    """Learn within 30 s what the user must change: an unknown bucket, a wrong secret, ..."""
    source.check_readable()
    output.check_writable()
