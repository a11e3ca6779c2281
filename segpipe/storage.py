"""A URI -> a store: a local folder or an S3 prefix, listed in pages and written atomically.

A `Store` is small and picklable; it carries endpoint and region, never keys: every process takes
its credentials from its own environment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
)

from segpipe.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

TEMPORARY = ".segpipe-tmp"  # suffix of a local file that is still being written
PROBE = "_segpipe/probe"  # written and deleted to learn whether an output can be written


@dataclass(frozen=True)
class Entry:
    """One stored object. `version` changes when its content does."""

    key: str
    bytes: int
    version: str


class Store(Protocol):
    """Keys are relative to the store's URI, with `/` between their components."""

    def __hash__(self) -> int: ...
    def uri(self, key: str = "") -> str: ...
    def get(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError where there is none."""

    def put(self, key: str, data: bytes) -> None:
        """Write the whole object or nothing; readers never see half of it."""

    def delete(self, key: str) -> None: ...
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """All objects whose key starts with `prefix`, in order of their keys, page by page."""

    def check_writable(self) -> None:
        """Raise UserError where nothing can be written; leaves nothing behind."""


def open_store(uri: str) -> Store:
    """The store at `uri`: a local path or `s3://bucket/prefix`."""
    if not uri.startswith("s3://"):
        if "://" in uri:
            raise UserError(f"{uri}: unknown kind of URI, use a local path or s3://bucket/prefix")
        return LocalStore(os.path.abspath(uri))
    parts = urlsplit(uri, allow_fragments=False)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    if not parts.netloc:
        raise UserError(f"{uri}: no bucket named, use s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return S3Store(parts.netloc, path.strip("/"), endpoint, region)


def read_uri(uri: str) -> bytes:
    """The bytes of the single object at `uri`."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    try:
        return open_store(folder or ("/" if uri.startswith("/") else ".")).get(name)
    except FileNotFoundError as error:
        raise UserError(f"{uri}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{uri}: is a folder, name the file in it") from error


def exists(store: Store, key: str) -> bool:
    return any(entry.key == key for entry in store.list(key))


def preflight(source: Store, output: Store) -> None:
    """Learn within seconds what the user must change: an unknown bucket, a wrong secret, ..."""
    try:
        next(source.list(), None)
        output.check_writable()
    except OSError as error:
        raise UserError(f"{error} (is the store up and its endpoint right?)") from error


@dataclass(frozen=True)
class LocalStore:
    root: str

    def uri(self, key: str = "") -> str:
        return os.path.join(self.root, key) if key else self.root

    def _path(self, key: str) -> Path:
        path = Path(self.root, key)
        if ".." in Path(key).parts or Path(key).is_absolute():
            raise ValueError(f"key {key!r} leaves {self.root}")
        return path

    def get(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except NotADirectoryError as error:
            raise FileNotFoundError(self.uri(key)) from error

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=TEMPORARY)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        if not os.path.isdir(self.root):
            return
        self._path(prefix)  # refuses what lies outside
        folder, _, _ = prefix.rpartition("/")
        for entry in _walk(self.root, folder):
            if entry.key.startswith(prefix):
                yield entry

    def check_writable(self) -> None:
        existing = Path(self.root)
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{self.root}: cannot write there, {existing} is not a folder")
        try:
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise UserError(
                f"{self.root}: cannot write there ({error.strerror}), choose another --output"
            ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _walk(root: str, folder: str) -> Iterator[Entry]:
    path = os.path.join(root, folder)
    if not os.path.isdir(path):
        return
    with os.scandir(path) as scan:
        # a folder sorts as its name and a slash, so that keys come in the order S3 lists them
        found = sorted((f"{e.name}/" if e.is_dir() else e.name, e) for e in scan)
    for name, item in found:
        key = f"{folder}/{name}" if folder else name
        if name.endswith("/"):
            yield from _walk(root, key.rstrip("/"))
        elif item.is_file() and not name.endswith(TEMPORARY):
            stat = item.stat()
            yield Entry(key, stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}")


@dataclass(frozen=True)
class S3Store:
    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None

    def uri(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{self._key(key)}".rstrip("/")

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _client(self) -> S3Client:
        return _s3_client(self.endpoint, self.region)

    def get(self, key: str) -> bytes:
        with self._explained(key):
            response = self._client().get_object(Bucket=self.bucket, Key=self._key(key))
            return response["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        with self._explained(key):
            self._client().put_object(Bucket=self.bucket, Key=self._key(key), Body=data)

    def delete(self, key: str) -> None:
        with self._explained(key):
            self._client().delete_object(Bucket=self.bucket, Key=self._key(key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        pages = self._client().get_paginator("list_objects_v2")
        with self._explained(prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self._key(prefix)):
                for item in page.get("Contents", []):
                    key = item["Key"][len(self._key("")) :]
                    if key and not key.endswith("/"):
                        yield Entry(key, item["Size"], item["ETag"].strip('"'))

    def check_writable(self) -> None:
        self.put(PROBE, b"")
        self.delete(PROBE)

    @contextmanager
    def _explained(self, key: str) -> Iterator[None]:
        """Turn what the user must mend into one line, a missing key into FileNotFoundError."""
        try:
            yield
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise UserError(
                f"{self.uri()}: no S3 credentials, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(self.uri(key)) from error
            if code in MENDABLE:
                raise UserError(f"{self.uri()}: {MENDABLE[code]} ({code})") from error
            raise OSError(f"{self.uri(key)}: {error}") from error
        except BotoCoreError as error:
            raise OSError(f"{self.uri(key)}: {error}") from error


MENDABLE = {
    "NoSuchBucket": "no such bucket",
    "InvalidAccessKeyId": "the store does not know this access key, check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the store refuses the signature, check AWS_SECRET_ACCESS_KEY",
    "AccessDenied": "access denied, check the credentials and the bucket's policy",
}


@lru_cache(maxsize=8)
def _s3_client(endpoint: str | None, region: str | None) -> S3Client:
    return boto3.Session().client(  # the default session is not safe for threads
        "s3",
        endpoint_url=endpoint,
        region_name=region or "us-east-1",
        config=Config(
            connect_timeout=5,  # seconds
            read_timeout=60,  # seconds
            retries={"max_attempts": 5, "mode": "standard"},
            max_pool_connections=16,
            s3={"addressing_style": "path"} if endpoint else {},
            # Stores that are not Amazon's often refuse the newer streamed checksums.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
