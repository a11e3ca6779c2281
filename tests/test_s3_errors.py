"""What is done about every error of an S3 store: the table, its page, and real answers.

Run: pytest tests/test_s3_errors.py
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from hashlib import md5
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import botocore.exceptions
import pytest
from botocore.stub import Stubber
from verbs import rows, run

from segpipe.data.codecs import decode_image
from segpipe.errors import ChangedObject, NotNow, RejectedImage, StoreDown, UserError
from segpipe.segment.fetch import OpenInput, fetch
from segpipe.segment.inputs import open_source
from segpipe.storage import Entry, open_store, preflight, read_uri, s3_errors
from segpipe.storage import s3 as s3_module
from segpipe.storage.s3 import S3Store

ROOT = Path(__file__).resolve().parent.parent
HERE = socket.gethostname()

# Written down here once more, from what the stores' manuals say of each code.
STATUS = {
    301: ["PermanentRedirect", "301"],
    302: ["302"],
    307: ["TemporaryRedirect", "Redirect", "307"],
    308: ["308"],
    403: [
        "AccessDenied",
        "403",
        "InvalidObjectState",
        "AllAccessDisabled",
        "AccountProblem",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "InvalidSecurity",
        "NotSignedUp",
        "InvalidPayer",
        "RequestTimeTooSkewed",
        "RequestExpired",
        "QuotaExceeded",
        "InvalidClientTokenId",
        s3_errors.KMS,
    ],
    404: ["NoSuchKey", "NoSuchVersion", "NoSuchBucket", "404"],
    405: ["MethodNotAllowed", "405"],
    408: ["408"],
    409: ["OperationAborted", "ConditionalRequestConflict", "409"],
    412: ["PreconditionFailed", "412"],
    413: ["413"],
    416: ["InvalidRange", "416"],
    418: ["4xx"],
    425: ["425"],
    429: ["TooManyRequests", "TooManyRequestsException", "429"],
    500: ["InternalError", "5xx"],
    501: ["NotImplemented", "501"],
    503: ["SlowDown", "ServiceUnavailable", "BandwidthLimitExceeded", "RequestLimitExceeded"],
    507: ["XMinioStorageFull", "StorageFull", "InsufficientCapacity", "507"],
}
STATUSES = {code: status for status, codes in STATUS.items() for code in codes}
PASSES = {
    *("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled"),
    *("RequestLimitExceeded", "BandwidthLimitExceeded", "TooManyRequests", "429"),
    *("TooManyRequestsException", "KMS.ThrottlingException", "InternalError", "ServiceUnavailable"),
    *("RequestTimeout", "RequestTimeoutException", "OperationAborted", "PriorRequestNotComplete"),
    *("ConditionalRequestConflict", "408", "409", "425", "5xx", "BadDigest", "IncompleteBody"),
    *("XAmzContentSHA256Mismatch", "BotoCoreError", "HTTPClientError", "HTTPError", "OSError"),
    *("RequestTimeTooSkewed", "RequestExpired"),  # where the clocks agree, as here
}
MISSING = {"NoSuchKey", "NoSuchVersion", "404"}
CHANGED = {"PreconditionFailed", "412"}
ARCHIVED = {"InvalidObjectState"}
OF_A_KEY = {
    *("KMS.DisabledException", "KMS.NotFoundException", "KMS.KMSInvalidStateException"),
    *("KMS.InvalidKeyUsageException", s3_errors.KMS),
}
DENIED = {"AccessDenied", "403"}
OF_THIS_OBJECT = {"InvalidRequest", "InvalidArgument", "InvalidRange", "400", "416", "4xx"}
TOO_LARGE = {"EntityTooLarge", "413"}
TOO_LONG = {"KeyTooLongError"}
SAID = {
    "QuotaExceeded": "no space is left",
    "XMinioStorageFull": "no space is left",
    "ExpiredToken": "expired",
    "AccessDenied": "access denied",
    "MethodNotAllowed": "does not offer",
    "PermanentRedirect": "AWS_REGION",
    "NoSuchBucket": "no such bucket",
    "InvalidAccessKeyId": "AWS_ACCESS_KEY_ID",
}


def wanted(code: str, reading: bool) -> tuple[type[Exception], type | None]:
    """What a store raises, and what then becomes of a photograph; None where the run ends."""
    if code in PASSES:
        return StoreDown, None
    if code in MISSING:
        return FileNotFoundError, RejectedImage
    if code in CHANGED:
        return ChangedObject, OpenInput
    if code in ARCHIVED or (reading and code in OF_A_KEY):
        return NotNow, OpenInput
    if reading and code in TOO_LONG:
        return FileNotFoundError, RejectedImage
    if reading and code in DENIED:
        return PermissionError, RejectedImage
    if code in OF_THIS_OBJECT or (reading and code in TOO_LARGE):
        return OSError, OpenInput
    return UserError, None


BOTOCORE = [code for code in s3_errors.TABLE if hasattr(botocore.exceptions, code)]
ANSWERED = [code for code in s3_errors.TABLE if code not in (*BOTOCORE, "OSError", "HTTPError")]


@pytest.fixture(autouse=True)
def own_keys(monkeypatch, tmp_path):
    """No configuration of this machine."""
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")


@pytest.fixture
def own_clients(own_keys):
    """Clients made here take up this test's environment, and none of them outlives it."""
    s3_module._s3_client.cache_clear()
    yield
    s3_module._s3_client.cache_clear()


@pytest.fixture
def store() -> S3Store:
    return S3Store("bucket", "prefix", "http://127.0.0.1:9", "eu-west-1", patience_s=0)


def stubbed(store: S3Store, *calls: tuple[str, str]) -> Stubber:
    """Each of these operations in turn answers with this code; "" for an answer."""
    stub = Stubber(store._client())
    for operation, code in calls:
        if not code:
            stub.add_response(operation, {})
            continue
        status = STATUSES.get(code, 400)
        told, message = code, "as told"
        if code == s3_errors.KMS:
            told, message = "AccessDenied", "User x is not authorized to perform: kms:Decrypt"
        elif code in ("4xx", "5xx"):
            told = "OfSomeVendor"
        stub.add_client_error(operation, told, message, status)
    return stub


@pytest.mark.parametrize("code", ANSWERED)
def test_each_answer_is_what_the_manual_says(store, code):
    raised, becomes = wanted(code, reading=True)
    with stubbed(store, ("get_object", code)), pytest.raises(raised) as told:
        store.get("x")
    if raised is OSError:
        assert type(told.value) is OSError
    assert "\n" not in str(told.value)
    assert "s3://bucket/prefix" in str(told.value)
    if raised is UserError:
        assert SAID.get(code, "") in str(told.value)
    look = [("list_objects_v2", "")] if raised in (OSError, FileNotFoundError) else []
    with stubbed(store, ("get_object", code), *look):
        if becomes is None:
            with pytest.raises(raised):
                fetch(store, Entry("x", 1, ""))
        else:
            assert type(fetch(store, Entry("x", 1, ""))) is becomes


@pytest.mark.parametrize("code", ANSWERED)
def test_each_answer_to_a_listing_or_a_write_is_told_or_tried_again(store, code):
    raised, _ = wanted(code, reading=False)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("list_objects_v2", lambda: list(store.list())),
        ("put_object", lambda: store.put("x", b"")),
    ]
    for operation, ask in ways:
        with stubbed(store, (operation, code)), pytest.raises(raised):
            ask()
    if raised is UserError:
        with stubbed(store, ("list_objects_v2", code)), pytest.raises(UserError) as told:
            store.check_readable()
        assert SAID.get(code, "") in str(told.value)


def test_every_code_of_the_table_is_known_here():
    assert set(STATUSES) <= set(ANSWERED)
    assert set(s3_errors.TABLE) >= (
        PASSES
        | MISSING
        | CHANGED
        | ARCHIVED
        | OF_A_KEY
        | DENIED
        | OF_THIS_OBJECT
        | TOO_LARGE
        | TOO_LONG
    )
    assert len(s3_errors.TABLE) == sum(len(row.codes) for row in s3_errors.ROWS)  # none twice


ARGUMENTS = {
    "PartialCredentialsError": {"provider": "env", "cred_var": "x"},
    "CredentialRetrievalError": {"provider": "process", "error_msg": "timed out"},
    "MetadataRetrievalError": {"error_msg": "throttled"},
    "TokenRetrievalError": {"provider": "sso", "error_msg": "expired"},
    "ProfileNotFound": {"profile": "x"},
    "ConfigNotFound": {"path": "x"},
    "ConfigParseError": {"path": "x", "error": "line 1"},
    "InvalidConfigError": {"error_msg": "no source_profile"},
    "UnknownCredentialError": {"name": "x"},
    "InvalidRegionError": {"region_name": "x"},
    "ParamValidationError": {"report": "Bucket name must match"},
    "HTTPClientError": {"error": "cut"},
}
OF_CREDENTIALS = ("NoCredentialsError", "CredentialRetrievalError", "MetadataRetrievalError")


@pytest.mark.parametrize("name", BOTOCORE)
def test_each_error_of_botocores_own_is_told_or_tried_again(store, name):
    error = getattr(botocore.exceptions, name)(**ARGUMENTS.get(name, {}))

    def fails(_: object) -> None:
        raise error

    with pytest.raises(StoreDown if name in PASSES else UserError) as told:
        store._ask("x", fails)
    assert "\n" not in str(told.value)
    assert (f"credentials on {HERE}" in str(told.value)) == (
        name in (*OF_CREDENTIALS, "PartialCredentialsError")
    )
    found = s3_errors.look_up(error, "bucket", "eu-west-1")
    if name in OF_CREDENTIALS:
        assert found.kind is s3_errors.Kind.CREDENTIALS


def test_the_page_shows_the_table():
    page = (ROOT / "docs/s3.md").read_text()
    assert "\n".join(s3_errors.table()) in page, "\n".join(s3_errors.table())
    shown = {kind for row in s3_errors.ROWS for kind in (row.kind, row.of_one) if kind}
    for kind in shown:
        assert f"- **{kind}**" in page, kind


# ---- real answers


@dataclass
class Server:
    """S3 as far as it is needed: a public bucket that refuses signed requests, and a private one
    that wants them.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    """By path: /bucket/key."""
    archived: set[str] = field(default_factory=set)
    faults: list[tuple[int, dict[str, str], str]] = field(default_factory=list)
    """Answers of all requests while there are some, the last for ever: status, headers, body."""
    seen: list[tuple[str, str, bool]] = field(default_factory=list)
    """Method, path, whether it was signed."""
    endpoint: str = ""


def error(code: str, **more: str) -> str:
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
    return f"<?xml version='1.0'?><Error><Code>{code}</Code>{inner}</Error>"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Listener"

    def serve(self) -> None:
        s3, address = self.server.s3, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        signed = "Authorization" in self.headers
        s3.seen.append((self.command, address.path, signed))
        if s3.faults:
            status, headers, content = s3.faults.pop(0) if len(s3.faults) > 1 else s3.faults[0]
            self.answer(status, content.encode(), headers)
            return
        path = unquote(address.path)
        bucket = path.split("/")[1]
        if signed != (bucket == "private"):
            self.answer(403, error("AccessDenied").encode())
        elif "list-type" in parse_qs(address.query):
            self.answer(200, self.listed(bucket, parse_qs(address.query)))
        elif self.command == "PUT":
            s3.objects[path] = body
            self.answer(200, b"")
        elif self.command == "DELETE":
            s3.objects.pop(path, None)
            self.answer(204, b"")
        elif path not in s3.objects:
            self.answer(404, error("NoSuchKey").encode())
        elif path in s3.archived and self.command == "GET":
            self.answer(403, error("InvalidObjectState").encode())
        else:
            self.answer(200, s3.objects[path], {"ETag": etag(s3.objects[path])})

    do_GET = do_HEAD = do_PUT = do_DELETE = serve

    def listed(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        start = f"/{bucket}/{query.get('prefix', [''])[0]}"
        found = sorted(p for p in self.server.s3.objects if p.startswith(start))
        items = "".join(
            f"<Contents><Key>{p.removeprefix(f'/{bucket}/')}</Key>"
            f"<Size>{len(self.server.s3.objects[p])}</Size>"
            f"<ETag>{etag(self.server.s3.objects[p])}</ETag></Contents>"
            for p in found
        )
        whole = f"<ListBucketResult>{items}<IsTruncated>false</IsTruncated></ListBucketResult>"
        return whole.encode()

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in ({"Date": formatdate(usegmt=True)} | (headers or {})).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def etag(data: bytes) -> str:
    return f'"{md5(data, usedforsecurity=False).hexdigest()}"'


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    s3: Server


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[Listener]:
    with Listener(("127.0.0.1", 0), handler) as listener:
        threading.Thread(target=listener.serve_forever, args=(0.05,), daemon=True).start()
        yield listener
        listener.shutdown()


@pytest.fixture
def server(monkeypatch, own_clients) -> Iterator[Server]:
    with listening(Handler) as listener:
        listener.s3 = Server(endpoint=f"http://127.0.0.1:{listener.server_port}")
        monkeypatch.setenv("AWS_ENDPOINT_URL", listener.s3.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield listener.s3


ELSEWHERE = [
    (301, {"x-amz-bucket-region": "eu-west-1"}, error("PermanentRedirect")),
    (301, {}, error("PermanentRedirect", Region="eu-west-1")),
    (307, {"x-amz-bucket-region": "eu-west-1"}, error("TemporaryRedirect")),
    (400, {}, error("AuthorizationHeaderMalformed", Region="eu-west-1")),
    (400, {"x-amz-bucket-region": "eu-west-1"}, error("IllegalLocationConstraintException")),
]


@pytest.mark.parametrize("answer", ELSEWHERE)
def test_a_bucket_of_another_region_is_told_with_both_regions(server, answer):
    server.faults = [answer]
    for ask in (open_store("s3://private/x").check_readable, lambda: read_uri("s3://private/x/y")):
        with pytest.raises(UserError) as told:
            ask()
        said = str(told.value)
        assert "bucket private was asked for in region us-east-1, and is in eu-west-1" in said
        assert "AWS_REGION=eu-west-1" in said
        assert "endpoint" not in said.lower()
    assert len(server.seen) < 12  # nothing was tried again and again


@pytest.mark.parametrize("status", [301, 307, 400])
def test_a_head_that_is_answered_from_another_region_is_told_so_too(server, status):
    server.faults = [(status, {"x-amz-bucket-region": "eu-west-1"}, "")]
    with pytest.raises(UserError, match=r"region us-east-1, and is in eu-west-1"):
        open_store("s3://private/x").head("y")


def test_a_redirect_that_names_no_region_is_told_as_one(server):
    server.faults = [(301, {}, error("PermanentRedirect", Endpoint="s3.elsewhere.example"))]
    with pytest.raises(UserError, match=r"the store names s3\.elsewhere\.example.*AWS_REGION"):
        open_store("s3://private/x").check_readable()


@pytest.mark.parametrize(
    ("status", "raised"),
    [(403, UserError), (404, None), (412, ChangedObject), (429, StoreDown), (503, StoreDown)],
)
def test_a_head_has_no_body_and_is_understood(server, status, raised):
    server.faults = [(status, {}, "")]
    store = open_store("s3://private/x", patience_s=0)
    if raised is None:
        assert store.head("y") is None
        return
    with pytest.raises(raised):
        store.head("y")


@pytest.mark.parametrize(("ahead_s", "side"), [(3600, "behind"), (-3600, "ahead of")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_clock_that_is_wrong_is_told_with_the_difference(server, ahead_s, side, method):
    date = {"Date": formatdate(time.time() + ahead_s, usegmt=True)}
    server.faults = [(403, date, error("RequestTimeTooSkewed"))]
    store = open_store("s3://private/x", patience_s=0)
    ask = store.head if method == "HEAD" else store.get
    with pytest.raises(UserError) as told:
        ask("y")
    (seconds,) = re.findall(rf"clock of {HERE} is (\d+) s {side} the store's", str(told.value))
    assert abs(int(seconds) - 3600) < 120


def test_a_request_that_waited_is_sent_again_where_the_clocks_agree(server):
    server.objects["/private/x/y"] = b"content"
    store = open_store("s3://private/x")
    calls: list[int] = []

    def stopped(s3) -> bytes:
        """As a process that was suspended while it sent."""
        calls.append(1)
        server.faults = [(403, {}, error("RequestTimeTooSkewed"))] if len(calls) == 1 else []
        return s3.get_object(Bucket="private", Key="x/y")["Body"].read()

    assert store._ask("y", stopped) == b"content"
    assert len(calls) == 2


def test_a_store_that_refuses_conditions_is_written_without_them(server):
    refusal = (501, {}, error("NotImplemented"))
    server.faults = [(404, {}, ""), refusal, (200, {}, "")]
    assert open_store("s3://private/x").put_new("y", b"mine")


# ---- credentials that a node's own service gives, or does not


@dataclass
class Metadata:
    """The metadata service of a machine, which hands out keys."""

    refusals: int
    asked: int = 0


@contextmanager
def metadata_service(monkeypatch, refusals: int) -> Iterator[Metadata]:
    service = Metadata(refusals)

    class Keys(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            service.asked += 1
            self.answer(200 if service.asked > service.refusals else 503, "token")

        def do_GET(self) -> None:
            keys = {
                "Code": "Success",
                "Type": "AWS-HMAC",
                "AccessKeyId": "of-the-machine",
                "SecretAccessKey": "x",
                "Token": "x",
                "Expiration": "2099-01-01T00:00:00Z",
            }
            refused = service.asked <= service.refusals
            role = self.path.endswith("security-credentials/")
            self.answer(503 if refused else 200, "role" if role else json.dumps(keys))

        def answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with listening(Keys) as listener:
        url = f"http://127.0.0.1:{listener.server_port}/"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        yield service


def test_a_service_of_keys_that_is_throttled_is_asked_again(server, monkeypatch):
    server.objects["/private/x/y"] = b"content"
    with metadata_service(monkeypatch, refusals=3) as service:
        assert open_store("s3://private/x").get("y") == b"content"
        assert service.asked > 3


def test_a_service_of_keys_that_never_gives_any_is_told_as_missing_credentials(server, monkeypatch):
    with metadata_service(monkeypatch, refusals=10**9) as service:
        with pytest.raises(UserError, match=f"no S3 credentials on {HERE},.*--anonymous"):
            open_store("s3://private/x", patience_s=1).get("y")
        assert service.asked > 1
    assert not server.seen


def test_a_program_of_keys_that_fails_is_told_as_missing_credentials(server, monkeypatch, tmp_path):
    (tmp_path / "AWS_CONFIG_FILE").write_text("[default]\ncredential_process = /bin/false\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match=f"no S3 credentials on {HERE} "):
        open_store("s3://private/x", patience_s=0).get("y")


@pytest.mark.parametrize(("name", "value"), [("AWS_PROFILE", "nobody"), ("AWS_REGION", "no such")])
def test_a_wrong_variable_of_the_sdk_is_named(server, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=name):
        open_store("s3://private/x").check_readable()


# ---- a public bucket


def test_a_public_bucket_is_read_unsigned_and_the_output_written_signed(server, monkeypatch):
    server.objects["/public/a b.jpg"] = b"content"
    source, output = open_store("s3://public", anonymous=True), open_store("s3://private/out")
    preflight(source, output)
    (entry,) = source.list()
    assert source.get(entry.key, entry.version) == b"content"
    assert source.head(entry.key) == entry
    assert {signed for _, path, signed in server.seen if path.startswith("/public")} == {False}
    assert {signed for _, path, signed in server.seen if path.startswith("/private")} == {True}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_module._s3_client.cache_clear()
    assert source.get(entry.key) == b"content"
    with pytest.raises(UserError, match="--anonymous"):
        output.put("x", b"")


def test_a_list_in_a_public_bucket_and_what_it_names_are_read_unsigned(server):
    server.objects["/public/list.csv"] = b"path\na.jpg\ns3://public/sub/b.jpg\n"
    server.objects["/public/a.jpg"] = server.objects["/public/sub/b.jpg"] = b"content"
    source = open_source("s3://public/list.csv", 0, anonymous=True)
    source.check_readable()
    entries = list(source.list())
    assert [(e.key, e.bytes) for e in entries] == [("public/a.jpg", 7), ("public/sub/b.jpg", 7)]
    assert source.get("public/a.jpg", entries[0].version) == b"content"
    assert source.answers("public/a.jpg")
    assert {signed for _, _, signed in server.seen} == {False}


def test_a_bucket_that_is_not_public_is_told_with_the_flag(server):
    with pytest.raises(UserError, match="leave --anonymous out"):
        open_store("s3://private/x", anonymous=True).check_readable()


@pytest.mark.parametrize(
    "words",
    [
        ("segment", "--input", "photographs", "--output", "out"),
        ("train", "--data", "set", "--output", "out"),
        ("evaluate", "--data", "set", "other", "--output", "out"),
        ("check", "--data", "set"),
    ],
)
def test_anonymous_without_anything_on_s3_is_refused(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*words, "--anonymous") == 2
    assert f"--anonymous: {words[1]} {words[2]}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cluster
def test_an_archive_in_a_public_bucket_waits_for_what_must_be_restored(
    server, labelled, ray_cluster, capfd
):
    """Workers have keys and send none; the photograph in an archive tier is no rejection."""
    for path in sorted(labelled.glob("test/images/*")):
        server.objects[f"/public/in/{path.name}"] = path.read_bytes()
    names = sorted(server.objects)
    server.archived = {names[0]}
    words = ("--input", "s3://public/in", "--output", "s3://private/out", "--anonymous")
    flags = ("--checkpoint", "segnet-lite", "--backend", "torch", "--tta", "none")
    assert run("segment", *words, *flags) == 1
    told = capfd.readouterr()
    uri = f"s3:/{names[0]}"
    assert f"1 still open, one of them: {uri}: in an archive tier, restore it first" in told.err
    output = open_store("s3://private/out")
    assert [row["status"] for row in rows(output)] == ["ok"]
    server.archived.clear()
    assert run("segment", *words, *flags) == 0
    found = rows(output)
    assert {f"/public/in/{row['path']}": row["status"] for row in found} == dict.fromkeys(
        names, "ok"
    )
    assert decode_image(output.get(found[0]["mask_path"])).shape[:2] == (584, 565)
    signed = {path.split("/")[1]: sign for _, path, sign in server.seen}
    assert signed == {"public": False, "private": True}
    assert len({(path.split("/")[1], sign) for _, path, sign in server.seen}) == 2
