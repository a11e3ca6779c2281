"""What is done about each error of an S3 store: one table, which docs/s3.md shows.

An error is looked up by the store's code, then by the HTTP status, then by the first digit of that
status. Errors of botocore itself go by the name of their class, or of a class above it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any

from botocore.exceptions import ClientError

SKEW_S = 300.0  # seconds by which two clocks differ; stores allow 900
KMS = "AccessDenied by KMS"  # the store says AccessDenied, and only its message tells why
CLOCK = "RequestTimeTooSkewed"


class Kind(StrEnum):
    """What is done."""

    USER = "user error"
    """Told at once; exit code 2."""
    TRANSIENT = "transient error"
    """Sent again until --store-patience has passed."""
    CREDENTIALS = "transient, then user error"
    """As TRANSIENT; then the credentials are to blame, not the store."""
    CLOCK = "user error, or transient"
    """USER where the clocks differ now; else the request was merely old when it was sent."""
    MISSING = "not found"
    """A photograph is rejected; other objects need not exist."""
    DENIED = "rejected: permission denied"
    CHANGED = "stays open: changed"
    """The next run lists the new version."""
    NOT_NOW = "stays open"
    """Whether the store answers or not: someone must do something about this object first."""
    ONE = "error of this object"
    """A photograph stays open where the store answers; what was to be written ends the run."""


@dataclass(frozen=True)
class Row:
    codes: tuple[str, ...]
    kind: Kind
    """Of any request."""
    words: str
    """What the user is told."""
    of_one: Kind | None = None
    """Of reading one object, where that differs."""
    of_key: bool = False
    """Whether a user error is about the key of the request, not about the store."""


ACCESS = "access denied, check the credentials and the bucket's policy"
KEY = "check the KMS key of the object and who may use it"
ROWS = (
    # one object
    Row(("NoSuchKey", "NoSuchVersion", "404"), Kind.MISSING, "no such object"),
    Row(("PreconditionFailed", "412"), Kind.CHANGED, "changed since it was listed"),
    Row(("AccessDenied", "403"), Kind.USER, ACCESS, of_one=Kind.DENIED),
    Row(
        ("InvalidObjectState",),
        Kind.NOT_NOW,
        "in an archive tier, restore it first, then run the same command again",
    ),
    Row((KMS,), Kind.USER, f"access to a KMS key denied, {KEY}", of_one=Kind.NOT_NOW),
    Row(
        (
            "KMS.DisabledException",
            "KMS.NotFoundException",
            "KMS.KMSInvalidStateException",
            "KMS.InvalidKeyUsageException",
        ),
        Kind.USER,
        f"a KMS key cannot be used, {KEY}",
        of_one=Kind.NOT_NOW,
    ),
    # the bucket and its region
    Row(("NoSuchBucket",), Kind.USER, "no such bucket, check its name and AWS_ENDPOINT_URL"),
    Row(("InvalidBucketName",), Kind.USER, "no bucket can have that name, check it"),
    Row(
        (
            "PermanentRedirect",
            "TemporaryRedirect",
            "Redirect",
            "AuthorizationHeaderMalformed",
            "IllegalLocationConstraintException",
            "301",
            "302",
            "307",
            "308",
        ),
        Kind.USER,
        "the bucket is in another region, check AWS_REGION and AWS_ENDPOINT_URL",
    ),
    Row(
        ("InvalidRegionError", "NoRegionError"),
        Kind.USER,
        "no region has that name, check AWS_REGION",
    ),
    # credentials
    Row(
        ("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"),
        Kind.USER,
        "the store does not know this access key, check AWS_ACCESS_KEY_ID",
    ),
    Row(
        ("SignatureDoesNotMatch",),
        Kind.USER,
        "the store refuses the signature, check AWS_SECRET_ACCESS_KEY",
    ),
    Row(
        ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"),
        Kind.USER,
        "the credentials have expired, renew them",
    ),
    Row(("InvalidToken",), Kind.USER, "the store refuses AWS_SESSION_TOKEN, renew or unset it"),
    Row(
        ("AllAccessDisabled", "AccountProblem", "InvalidSecurity", "NotSignedUp", "InvalidPayer"),
        Kind.USER,
        "the store has closed this account or bucket, ask who runs it or use another",
    ),
    Row((CLOCK, "RequestExpired"), Kind.CLOCK, "the clock differs from the store's, set it"),
    Row(
        ("NoCredentialsError", "CredentialRetrievalError", "MetadataRetrievalError"),
        Kind.CREDENTIALS,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY there, or give --anonymous to read a "
        "public bucket",
    ),
    Row(
        ("PartialCredentialsError",),
        Kind.USER,
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY there, both of them",
    ),
    Row(
        ("SSOError", "TokenRetrievalError", "LoginError", "NoAuthTokenError"),
        Kind.USER,
        "the credentials have expired, sign in again to renew them",
    ),
    Row(
        (
            "ProfileNotFound",
            "ConfigNotFound",
            "ConfigParseError",
            "InvalidConfigError",
            "UnknownCredentialError",
        ),
        Kind.USER,
        "check AWS_PROFILE and the AWS configuration files",
    ),
    # what the store has no room for or does not do
    Row(
        (
            "QuotaExceeded",
            "StorageFull",
            "XMinioStorageFull",
            "XMinioAdminBucketQuotaExceeded",
            "InsufficientCapacity",
            "507",
        ),
        Kind.USER,
        "no space is left at the store, make some or raise the quota, then run the same command "
        "again",
    ),
    Row(
        ("EntityTooLarge", "413"),
        Kind.USER,
        "the store takes no object this large, choose another store",
        of_one=Kind.ONE,
        of_key=True,
    ),
    Row(
        ("KeyTooLongError",),
        Kind.USER,
        "the store takes no name this long, choose another store",
        of_one=Kind.MISSING,
        of_key=True,
    ),
    Row(
        ("MethodNotAllowed", "NotImplemented", "405", "501"),
        Kind.USER,
        "the store does not offer this request, check AWS_ENDPOINT_URL",
    ),
    Row(
        ("ParamValidationError",),
        Kind.USER,
        "no store takes this bucket or key, check the path",
        of_one=Kind.MISSING,
        of_key=True,
    ),
    # what passes
    Row(
        (
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "ThrottledException",
            "RequestThrottled",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
            "TooManyRequests",
            "TooManyRequestsException",
            "KMS.ThrottlingException",
            "429",
        ),
        Kind.TRANSIENT,
        "the store is asked too often",
    ),
    Row(
        (
            "InternalError",
            "ServiceUnavailable",
            "RequestTimeout",
            "RequestTimeoutException",
            "OperationAborted",
            "ConditionalRequestConflict",
            "PriorRequestNotComplete",
            "408",
            "409",
            "425",
            "5xx",
        ),
        Kind.TRANSIENT,
        "the store is busy or failing",
    ),
    Row(
        ("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"),
        Kind.TRANSIENT,
        "bytes were lost on the way",
    ),
    Row(
        ("BotoCoreError", "HTTPClientError", "HTTPError", "OSError"),
        Kind.TRANSIENT,
        "no answer: the connection failed or took too long",
    ),
    # all else
    Row(
        ("InvalidRequest", "InvalidArgument", "InvalidRange", "400", "416", "4xx"),
        Kind.ONE,
        "the store refuses the request",
    ),
)
TABLE = {code: row for row in ROWS for code in row.codes}
REGION = TABLE["PermanentRedirect"]
SAYS_WHY = [TABLE[code] for code in ("4xx", "501")]  # in their message
BARE = ("400", "403")  # codes of answers without a body


@dataclass(frozen=True)
class Finding:
    """An error, looked up."""

    kind: Kind
    code: str
    """The store's, or the name of botocore's class."""
    words: str
    """What the user is told, with what this answer says."""
    brief: str
    """What happened, where it may pass."""
    of_key: bool


def look_up(error: BaseException, bucket: str, region: str, reading: bool = False) -> Finding:
    """What is done about an error that botocore raised for a request to `bucket`, signed for
    `region`; `reading` one object.
    """
    if isinstance(error, ClientError):
        return _of_answer(error, bucket, region)
    name = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in TABLE)
    row = TABLE[name]
    kind, words = row.of_one if reading and row.of_one else row.kind, row.words
    if kind is Kind.CREDENTIALS or name == "PartialCredentialsError":  # each node has its own
        why = "" if name == "NoCredentialsError" else f" ({_line(error)})"
        words = f"no S3 credentials on {socket.gethostname()}{why}, {words}"
    elif kind is Kind.USER:
        words = f"{words} ({_line(error)})"
    if name == "NoCredentialsError" and not _others_may_come():
        kind = Kind.USER
    code = type(error).__name__
    return Finding(kind, code, words, f"{code}: {_line(error)}", row.of_key)


def _of_answer(error: ClientError, bucket: str, region: str) -> Finding:
    answer: dict[str, Any] = error.response.get("Error", {})  # type: ignore[assignment]
    about: dict[str, Any] = error.response.get("ResponseMetadata", {})  # type: ignore[assignment]
    code, status = str(answer.get("Code", "")), int(about.get("HTTPStatusCode", 0))
    message = " ".join(str(answer.get("Message") or "").split())
    headers = about.get("HTTPHeaders", {})
    row = _row(code, status, message)
    its_region = headers.get("x-amz-bucket-region") or answer.get("Region")
    skew_s = _skew_s(answer.get("ServerTime"), headers.get("date"))
    if code in BARE and its_region not in (None, region):  # HEAD has no body: only a header tells
        row = REGION
    elif code in BARE and abs(skew_s) > SKEW_S:
        row = TABLE[CLOCK]
    reading = error.operation_name == "GetObject"
    kind, words = row.of_one if reading and row.of_one else row.kind, row.words
    if row is REGION:
        words = _another_region(bucket, region, its_region, answer.get("Endpoint"))
    elif row is TABLE[CLOCK] and abs(skew_s) <= SKEW_S:
        kind = Kind.TRANSIENT
    elif row is TABLE[CLOCK]:
        side = "behind" if skew_s > 0 else "ahead of"
        here = f"the clock of {socket.gethostname()} is {abs(skew_s):.0f} s {side} the store's"
        words = f"{here}, set it"
    elif row in SAYS_WHY and message:
        words = f"{words}: {message}"
    return Finding(kind, code, words, f"{code} ({status})", row.of_key)


def _row(code: str, status: int, message: str) -> Row:
    if code == "AccessDenied" and "kms:" in message.lower():
        return TABLE[KMS]
    for key in (code, str(status), f"{status // 100}xx"):
        if key in TABLE:
            return TABLE[key]
    return TABLE["5xx"]  # neither an answer of S3 nor an error: a proxy's


def _another_region(bucket: str, region: str, other: str | None, endpoint: str | None) -> str:
    used = f"bucket {bucket} was asked for in region {region}"
    if other and other != region:
        return f"{used}, and is in {other}: set AWS_REGION={other}"
    where = f", the store names {endpoint}" if endpoint else ""
    return f"{used}, and is elsewhere{where}: check AWS_REGION and AWS_ENDPOINT_URL"


def _skew_s(server: str | None, header: str | None) -> float:
    """Seconds by which the store's clock is ahead of this machine's; 0 where it is not told."""
    try:
        if server:
            clock = datetime.fromisoformat(str(server))
        elif header:
            clock = parsedate_to_datetime(header)
        else:
            return 0.0
    except ValueError:
        return 0.0
    clock = clock if clock.tzinfo else clock.replace(tzinfo=UTC)
    return clock.timestamp() - time.time()


def _others_may_come() -> bool:
    """Whether a service of the machine may give credentials that it did not give just now."""
    without = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    return not without or any(name.startswith("AWS_CONTAINER_CRED") for name in os.environ)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def table() -> Iterator[str]:
    """Lines of Markdown, as docs/s3.md has them."""
    yield "| code, status or error | reading a photograph | all else | what is told |"
    yield "|---|---|---|---|"
    for row in ROWS:
        codes = ", ".join(f"`{code}`" for code in row.codes)
        yield f"| {codes} | {row.of_one or row.kind} | {row.kind} | {row.words} |"
