"""A prefix on S3 or a compatible store.

What is done about an error stands in s3_errors.py. A transient one is tried again with growing
pauses until patience runs out; a user error, and what is true of one key, is told at once.
"""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    InvalidRegionError,
    NoCredentialsError,
)
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)
from urllib3.exceptions import HTTPError

from segpipe.errors import ChangedObject, NotNow, StoreDown, UserError, os_error_text
from segpipe.storage.entry import PATIENCE_S, PREFLIGHT_S, Entry, is_timed, timed_version
from segpipe.storage.s3_errors import ACCESS, Finding, Kind, look_up

if TYPE_CHECKING:
    from botocore.model import OperationModel
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

logger = logging.getLogger(__name__)
LONGEST_PAUSE_S = 10.0  # seconds between two tries
CONNECT_S, READ_S = 5.0, 60.0  # seconds until a connection, or until some bytes of an answer
CONNECTIONS = 16
MARKER_S = 2.0  # seconds of patience for a look why an output cannot be written
PROBE = "_segpipe/probe"  # written and deleted to learn whether an output can be written


class _Transient(Exception):
    """This request may well succeed when it is sent again."""

    def __init__(self, text: str, at_last: UserError | None = None) -> None:
        super().__init__(text)
        self.at_last = at_last
        """What the user must change where it never did; None where the store is to blame."""


@dataclass(frozen=True)
class S3Store:
    """Carries endpoint and region, never keys: each process has credentials of its own."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str | None
    patience_s: float = PATIENCE_S
    anonymous: bool = False
    """Whether requests are sent unsigned, for a public bucket."""

    def uri(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{self._key(key)}".rstrip("/")

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def head(self, key: str) -> Entry | None:
        try:
            found = self._ask(
                key, lambda s3: s3.head_object(Bucket=self.bucket, Key=self._key(key))
            )
        except FileNotFoundError:
            return None
        return Entry(key, found["ContentLength"], _versions(found["ContentLength"], found)[0])

    def get(self, key: str, version: str | None = None) -> bytes:
        same = {} if version is None or is_timed(version) else {"IfMatch": f'"{version}"'}

        def fetch(s3: S3Client) -> tuple[bytes, list[str]]:
            found = s3.get_object(Bucket=self.bucket, Key=self._key(key), **same)  # type: ignore[arg-type]
            data = found["Body"].read()
            return data, _versions(len(data), found)

        data, versions = self._ask(key, fetch, reading=True)
        # Stores that take no notice of If-Match are believed when they list another version now.
        if version not in (None, *versions) and version != self._listed_version(key):
            raise ChangedObject(f"{self.uri(key)}: changed since it was listed")
        return data

    def _listed_version(self, key: str) -> str | None:
        """Of the object of exactly this key, as a listing shows it among those that begin so."""
        return next((entry.version for entry in self.list(key) if entry.key == key), None)

    def put(self, key: str, data: bytes, durable: bool = True) -> None:
        self._ask(key, lambda s3: s3.put_object(Bucket=self.bucket, Key=self._key(key), Body=data))

    def sync(self, keys: Iterable[str]) -> None:
        """Nothing to do: what a store has answered for is there."""

    def put_new(self, key: str, data: bytes) -> bool:
        if self.head(key) is not None:  # for stores that take no notice of If-None-Match
            return False

        def put(s3: S3Client) -> None:
            s3.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*")

        try:
            self._ask(key, put)
        except ChangedObject:  # also where a first try was written and its answer got lost
            return self.get(key) == data
        except (StoreDown, FileNotFoundError):
            raise
        except (OSError, UserError):  # perhaps a store that refuses the condition itself
            self.put(key, data)
        return True

    def below(self, folder: str) -> S3Store:
        return replace(self, prefix=self._key(folder))

    def with_patience(self, seconds: float) -> S3Store:
        return replace(self, patience_s=min(seconds, self.patience_s))

    def delete(self, key: str) -> None:
        self._ask(key, lambda s3: s3.delete_object(Bucket=self.bucket, Key=self._key(key)))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        token: dict[str, str] = {}
        start = self._key("")
        while True:
            page = self._ask(
                prefix,
                lambda s3, token=token: s3.list_objects_v2(  # type: ignore[misc]
                    Bucket=self.bucket, Prefix=self._key(prefix), **token
                ),
            )
            for item in page.get("Contents", []):
                if not item["Key"].startswith(start):  # its first letters would be cut off
                    raise UserError(
                        f"{self.uri()}: the store lists {item['Key']} there, as it takes // for /; "
                        "give the path without //"
                    )
                key = item["Key"][len(start) :]
                if key and not key.endswith("/"):
                    yield Entry(key, item["Size"], _versions(item["Size"], item)[0])
            if not page.get("IsTruncated"):
                return
            before, token = token, {"ContinuationToken": page.get("NextContinuationToken", "")}
            if token in (before, {"ContinuationToken": ""}):
                raise OSError(f"{self.uri(prefix)}: the store's listing neither continues nor ends")

    def check_readable(self) -> None:
        with _told(self):
            self._look()

    def exists(self) -> bool:
        with _told(self):
            return self._look()

    def _look(self) -> bool:
        """Whether there is an object; asks once, with little patience."""
        found = self.with_patience(PREFLIGHT_S)._ask(
            "",
            lambda s3: s3.list_objects_v2(Bucket=self.bucket, Prefix=self._key(""), MaxKeys=1),
        )
        return bool(found.get("Contents"))

    def check_writable(self) -> None:
        hurried = self.with_patience(PREFLIGHT_S)
        with _told(self):
            try:
                hurried.put(PROBE, b"")
            except OSError as error:
                self._tell_marker(error)
                raise
            hurried.delete(PROBE)

    def _tell_marker(self, error: OSError) -> None:
        """Raise UserError where an empty object has the name of this prefix, or of one above.

        Such objects mark folders. Servers that keep objects as files can hold nothing below one.
        """
        parts = self.prefix.split("/") if self.prefix else []
        for number in range(1, len(parts) + 1):
            name = "/".join(parts[:number])
            marker = replace(self, prefix="", patience_s=MARKER_S)
            with suppress(OSError, UserError):
                found = marker.head(name)
                if found is not None and not found.bytes:
                    break
        else:
            return
        raise UserError(
            f"{self.uri()}: cannot write there, the empty object {marker.uri(name)} is in the way, "
            "delete it or choose another --output"
        ) from error

    def answers(self, key: str = "") -> bool:
        try:
            self._look()
        except StoreDown:
            return False
        except (UserError, OSError):
            return True
        return True

    def missing_folders(self) -> tuple[str, ...]:
        return ()

    def remove_folders(self, missing: Iterable[str] = ()) -> None:
        """Nothing to do: there are none."""

    def sweep(self) -> None:
        """Nothing to do: a put is written whole or not at all."""

    def _ask(self, key: str, request: Callable[[S3Client], T], reading: bool = False) -> T:
        """The answer to a request, sent again while its failure may pass."""
        tries = Retrying(
            retry=retry_if_exception_type(_Transient),
            wait=wait_random_exponential(multiplier=0.2, max=LONGEST_PAUSE_S),
            stop=stop_after_delay(self.patience_s),
            before_sleep=partial(self._tell_retry, key),
            reraise=True,
        )
        start = time.monotonic()
        try:
            for attempt in tries:
                with attempt, self._explained(key, reading):
                    return request(self._client())
        except _Transient as failure:
            if failure.at_last:
                raise failure.at_last from failure.__cause__
            waited = time.monotonic() - start
            raise StoreDown(
                f"{self.uri(key)}: no good answer for {waited:.0f} s, at last {failure}"
            ) from failure.__cause__
        raise AssertionError("a request ends with an answer or an error")

    def _tell_retry(self, key: str, state: RetryCallState) -> None:
        failure = state.outcome.exception() if state.outcome else None
        logger.debug(
            "store: %s: tried again in %.1f s: %s", self.uri(key), state.upcoming_sleep, failure
        )

    def _client(self) -> S3Client:
        read_s = min(READ_S, max(1.0, self.patience_s))
        return _s3_client(self.endpoint, self._region(), read_s, self.anonymous)

    def _region(self) -> str:
        return self.region or "us-east-1"

    @contextmanager
    def _explained(self, key: str, reading: bool) -> Iterator[None]:
        """An error of botocore -> one of ours, or _Transient."""
        try:
            yield
        except (BotoCoreError, ClientError, HTTPClientError, HTTPError, OSError) as error:
            found = look_up(error, self.bucket, self._region(), reading)
            raise self._ours(key, found, error) from error

    def _ours(self, key: str, found: Finding, error: Exception) -> Exception:
        line = f"{found.words} ({found.code})"
        if self.anonymous and found.words == ACCESS:
            line = f"no public bucket, leave --anonymous out ({found.code})"
        match found.kind:
            case Kind.TRANSIENT:
                return _Transient(found.brief)
            case Kind.CREDENTIALS:
                return _Transient(line, UserError(f"{self.uri()}: {line}"))
            case Kind.USER | Kind.CLOCK:
                return UserError(f"{self.uri(key if found.of_key else '')}: {line}")
            case Kind.MISSING:
                return FileNotFoundError(f"{self.uri(key)}: {line}")
            case Kind.DENIED:
                return PermissionError(self.uri(key))
            case Kind.CHANGED:
                return ChangedObject(f"{self.uri(key)}: {found.words}")
            case Kind.NOT_NOW:
                return NotNow(f"{self.uri(key)}: {line}")
            case Kind.ONE:
                return OSError(f"{self.uri(key)}: {line}")


def _versions(bytes: int, answer: Mapping[str, Any]) -> list[str]:
    """What an object's version may be called by this answer, or item of a listing: by its etag, and
    by size and time. Some stores keep no etag, others tell it in some of their answers.
    """
    etag = (answer.get("ETag") or "").strip('"')
    timed = timed_version(bytes, answer.get("LastModified"))
    return [etag, timed] if etag else [timed]


@contextmanager
def _told(store: S3Store) -> Iterator[None]:
    """Whatever fails before anything was started is for the user to mend."""
    try:
        yield
    except StoreDown as error:
        _tell_scheme(store.endpoint)
        raise UserError(f"{error} (is the store up, and is AWS_ENDPOINT_URL right?)") from error
    except FileNotFoundError as error:
        raise UserError(
            f"{store.uri()}: the store knows no such bucket, check its name and AWS_ENDPOINT_URL"
        ) from error
    except OSError as error:
        _tell_scheme(store.endpoint)
        raise UserError(
            f"{os_error_text(error)} (check the bucket's name and AWS_ENDPOINT_URL)"
        ) from error


def _tell_scheme(endpoint: str | None) -> None:
    """Raise UserError where http:// and https:// of the endpoint are mixed up."""
    place = urlsplit(endpoint or "")
    if place.scheme not in ("http", "https") or not place.hostname:
        return
    speaks = _speaks_tls(place.hostname, place.port or (443 if place.scheme == "https" else 80))
    if speaks is not None and speaks != (place.scheme == "https"):
        plain, scheme = ("", "https") if speaks else ("plain ", "http")
        raise UserError(
            f"AWS_ENDPOINT_URL {endpoint}: the endpoint speaks {plain}{scheme}, "
            f"use {scheme}://{place.netloc}"
        )


def _speaks_tls(host: str, port: int) -> bool | None:
    """Whether a server answers a TLS handshake; None where nothing answers."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
    try:
        with (
            socket.create_connection((host, port), CONNECT_S) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLError as error:
        return False if error.reason in NO_TLS else None
    except OSError:
        return None


NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG")


@lru_cache(maxsize=8)
def _s3_client(endpoint: str | None, region: str, read_s: float, anonymous: bool) -> S3Client:
    """Raises NoCredentialsError where there are none now: the next call looks again."""
    config = Config(
        connect_timeout=CONNECT_S,
        read_timeout=read_s,
        retries={"total_max_attempts": 1},  # S3Store tries again by itself
        max_pool_connections=CONNECTIONS,
        s3={"addressing_style": "path"} if endpoint else {},
        # Stores that are not Amazon's often refuse the newer streamed checksums.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        **({"signature_version": UNSIGNED} if anonymous else {}),
    )
    session = boto3.Session()  # the default session is not safe for threads
    if not anonymous and session.get_credentials() is None:
        raise NoCredentialsError  # a client keeps what it got when it was made, also nothing
    try:
        client = session.client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except InvalidRegionError:
        raise
    except ValueError as error:
        raise UserError(f"AWS_ENDPOINT_URL {endpoint}: {error}, check it") from error
    client.meta.events.register_last("before-parameter-build.s3", _follow_once)
    return client


def _follow_once(model: OperationModel, context: dict[str, Any], **_: object) -> None:
    """botocore follows a redirect, and asks HEAD of the bucket where it names no region.

    That HEAD goes no further, else a server that redirects everything is asked without end.
    """
    if model.name == "HeadBucket":
        context["s3_redirect"]["redirected"] = True
