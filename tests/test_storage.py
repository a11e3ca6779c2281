"""One behaviour on local disk and on a real S3 server.

Run: pytest tests/test_storage.py
"""

import http.server
import pickle
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from gateways import Unordered, without_etags
from proxy import Proxy

from segpipe.errors import ChangedObject, StoreDown, UserError, os_error_text
from segpipe.storage import Store, open_store, preflight, read_uri
from segpipe.storage import s3 as s3_module
from segpipe.storage.local import LocalStore

STRANGE = ["plain.jpg", "with space.jpg", "ä/ö ü.jpg", "a#b?c%20d&e+f.jpg", ".dot/x", "k.png/x"]


RADOSGW = pytest.param("radosgw", marks=pytest.mark.cluster)


@pytest.fixture(params=["local", "s3", "moto", "without etags", "unordered", RADOSGW])
def store(request, tmp_path):
    if request.param == "local":
        yield open_store(str(tmp_path / "store"))
        return
    s3, place = request.getfixturevalue("s3"), f"s3://bucket/{tmp_path.name}"
    with ExitStack() as stack:
        endpoint = s3.endpoint
        if request.param in ("moto", "radosgw"):
            endpoint = request.getfixturevalue(request.param)
        elif request.param == "without etags":
            endpoint = stack.enter_context(Proxy(s3.endpoint, edit=without_etags)).endpoint
        elif request.param == "unordered":
            unordered = Unordered(s3.endpoint, seed=0)
            endpoint = stack.enter_context(Proxy(s3.endpoint, edit=unordered)).endpoint
        request.getfixturevalue("monkeypatch").setenv("AWS_ENDPOINT_URL", endpoint)
        yield open_store(place)


def listed(store: Store, prefix: str = "") -> list[str]:
    """Keys, which may come in any order."""
    return sorted(entry.key for entry in store.list(prefix))


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    (tmp_path / "report.html" / "x").mkdir(parents=True)
    with pytest.raises(IsADirectoryError) as told:
        open_store(str(tmp_path)).put("report.html", b"page")
    assert os_error_text(told.value) == f"{tmp_path / 'report.html'}: Is a directory"


@pytest.mark.parametrize("key", STRANGE)
def test_what_was_put_is_listed_and_read_and_deleted(store, key):
    store.put(key, b"first")
    store.put(key, b"second one")
    assert store.get(key) == b"second one"
    assert [(e.key, e.bytes) for e in store.list()] == [(key, 10)]
    assert store.head(key) == next(store.list())
    store.delete(key)
    assert store.head(key) is None
    store.delete(key)  # again is no error


def test_a_listing_is_whole_and_by_prefix(store):
    keys = ["a.jpg", "a/b.jpg", "a/c/d.jpg", "a0.jpg", "b/x.jpg", *(f"d/{n}" for n in range(9))]
    for key in reversed(keys):
        store.put(key, b"x")
    assert listed(store) == sorted(keys)
    assert listed(store, "a/") == ["a/b.jpg", "a/c/d.jpg"]


def test_a_changed_object_has_another_version(store):
    store.put("x", b"one")
    before = next(store.list()).version
    store.put("x", b"two!")
    assert next(store.list()).version != before


def test_a_missing_object_is_not_found(store):
    store.put("there", b"x")
    for key in ("not-there", "there/below"):
        with pytest.raises(FileNotFoundError):
            store.get(key)


def test_a_single_file_is_read_by_its_uri(store):
    store.put("sub/one.bin", b"content")
    assert read_uri(store.uri("sub/one.bin")) == b"content"
    with pytest.raises(UserError, match=r"two\.bin"):
        read_uri(store.uri("sub/two.bin"))


def test_a_writable_store_passes_and_keeps_nothing(store):
    preflight(store, store)
    assert list(store.list()) == []


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x"])
def test_no_key_leaves_a_local_store(tmp_path, key):
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="leaves"):
        store.put(key, b"x")


def test_a_killed_writer_leaves_the_old_object_and_nothing_listed(tmp_path):
    store = open_store(str(tmp_path))
    store.put("x", b"old")
    program = (
        "import sys; from segpipe.storage import open_store\n"
        "store, data = open_store(sys.argv[1]), bytes(50_000_000)\n"
        "while True: store.put('x', data)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) as writer:
        try:
            end = time.monotonic() + 60
            while not list((tmp_path / "_segpipe" / "tmp").glob("*")):
                assert time.monotonic() < end
        finally:
            writer.send_signal(signal.SIGKILL)  # also where the claim fails: it never ends itself
    assert [entry.key for entry in store.list()] == ["x"]
    assert len(store.get("x")) in (3, 50_000_000)


def test_a_wrong_secret_is_told_without_the_secret(s3, monkeypatch):
    s3_module._s3_client.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-word")
    try:
        with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as refusal:
            preflight(open_store(s3.uri), open_store(s3.uri))
    finally:
        s3_module._s3_client.cache_clear()
    assert "wrong-secret-word" not in str(refusal.value)


def test_an_unknown_bucket_is_told(s3):
    with pytest.raises(UserError, match=r"no-bucket.*no such bucket"):
        list(open_store("s3://no-bucket/x").list())


def test_a_pickled_store_holds_no_credentials(s3):
    data = pickle.dumps(open_store(s3.uri))
    assert s3.endpoint.encode() in data
    assert b"test-key" not in data
    assert b"test-secret" not in data


def test_a_file_in_the_way_of_an_output_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        open_store(str(tmp_path / "file" / "out")).check_writable()


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", "s3:///x"])
def test_a_uri_of_an_unknown_kind_is_told(uri):
    with pytest.raises(UserError, match=uri):
        open_store(uri)


def test_keys_of_any_letters_are_listed_of_a_folder_in_the_order_of_sorted_keys(store):
    """Also names before and after the slash in order, of which folders are made."""
    keys = [
        f"{a}{b}"
        for a in ("x", "x!", "x-y", "x.y", "xa", "Ä", "日本", "x/y", "x-y/ü")
        for b in ("", "é", "1.png")
    ]
    keys = sorted({key for key in keys if not any(k.startswith(f"{key}/") for k in keys)})
    for key in reversed(keys):
        store.put(key, key.encode())
    assert listed(store) == keys
    if isinstance(store, LocalStore):
        assert [entry.key for entry in store.list()] == keys
    assert all(store.get(key) == key.encode() for key in keys)
    for prefix in ("x", "x/", "x-", "x-y/", "日", "none", "x.y1"):
        assert listed(store, prefix) == [k for k in keys if k.startswith(prefix)]


def test_a_stores_neighbour_whose_name_goes_on_is_not_its_own(s3, tmp_path):
    for root in (str(tmp_path), f"{s3.uri}/neighbours"):
        open_store(f"{root}/set2").put("b", b"x")
        open_store(f"{root}/set").put("a", b"x")
        assert [entry.key for entry in open_store(f"{root}/set").list()] == ["a"]


@pytest.mark.parametrize("key", STRANGE)
def test_a_strange_key_is_read_by_its_uri_too(store, key):
    store.put(key, b"content")
    assert read_uri(store.uri(key)) == b"content"


def test_a_listing_of_several_pages_is_in_order_and_without_repeats(s3):
    """A page has 1000 keys."""
    store = open_store(f"{s3.uri}/shuffled")
    names = [f"{number:05d}.jpg" for number in range(1010)]
    for number in range(1010):
        store.put(names[number * 7 % 1010], b"x")
    assert [entry.key for entry in store.list()] == names


def test_a_shorter_object_replaces_a_longer_one_whole(store):
    store.put("x", b"long" * 50_000)
    store.put("x", b"short")
    assert store.get("x") == b"short"
    store.put("x", b"")
    assert store.get("x") == b""


def test_a_writer_killed_at_its_first_object_leaves_nothing_listed(tmp_path):
    program = (
        "import os, signal, sys, segpipe.storage.local as s\n"
        "def die(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
        "s.os.replace = die\n"
        "s.LocalStore(sys.argv[1]).put('sub/x', bytes(1000))"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.parent for path in left] == [tmp_path / "_segpipe" / "tmp"]
    assert list(open_store(str(tmp_path)).list()) == []
    open_store(str(tmp_path)).sweep()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    with pytest.raises(FileNotFoundError):
        open_store(str(tmp_path)).get("sub/x")


def test_a_put_that_fails_leaves_no_temporary_file(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        open_store(str(tmp_path)).put("x", b"data")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("key", ["../x", "a/../../x"])
def test_no_key_is_read_or_deleted_outside_a_local_store(tmp_path, key):
    (tmp_path / "x").write_bytes(b"not yours")
    (tmp_path / "store" / "a").mkdir(parents=True)
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="leaves"):
        store.get(key)
    with pytest.raises(ValueError, match="leaves"):
        store.delete(key)
    assert (tmp_path / "x").read_bytes() == b"not yours"


def test_nothing_outside_a_local_store_is_listed(tmp_path):
    (tmp_path / "x").write_bytes(b"not yours")
    (tmp_path / "store").mkdir()
    store = open_store(str(tmp_path / "store"))
    for prefix in ("../", "../x", f"{tmp_path}/"):
        with pytest.raises(ValueError, match="leaves"):
            list(store.list(prefix))


def test_no_key_reaches_another_prefix_of_a_bucket(s3):
    open_store(f"{s3.uri}/theirs").put("x", b"theirs")
    mine = open_store(f"{s3.uri}/mine")
    mine.put("a", b"mine")
    with pytest.raises((ValueError, OSError)):
        mine.put("../theirs/x", b"overwritten")
    with pytest.raises((ValueError, OSError)):
        mine.get("../theirs/x")
    assert open_store(f"{s3.uri}/theirs").get("x") == b"theirs"


@pytest.fixture
def fresh_clients():
    """Clients made here take up this test's environment, and none of them outlives it."""
    s3_module._s3_client.cache_clear()
    yield
    s3_module._s3_client.cache_clear()


@pytest.mark.parametrize("change", ["secret", "key", "none"])
def test_wrong_credentials_are_told_in_one_line(s3, monkeypatch, tmp_path, fresh_clients, change):
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if change == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-word")
    elif change == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong-word")
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(UserError, match="AWS_") as refusal:
        preflight(open_store(s3.uri), open_store(s3.uri))
    said = str(refusal.value)
    assert "\n" not in said
    assert "test-secret" not in said
    assert "wrong-word" not in said
    assert (f"credentials on {socket.gethostname()}," in said) == (change == "none")


def test_an_unknown_bucket_is_told_when_written_too(s3):
    with pytest.raises(UserError, match=r"no-bucket.*no such bucket") as told:
        open_store("s3://no-bucket/x").check_writable()
    assert "\n" not in str(told.value)


@pytest.fixture
def hurried(monkeypatch):
    """Before anything was begun a store is given up soon."""
    monkeypatch.setattr(s3_module, "PREFLIGHT_S", 1.0)


def test_a_server_that_is_not_there_is_told_in_one_line(monkeypatch, fresh_clients, hurried):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
    store = open_store("s3://bucket/x")
    with pytest.raises(UserError, match="is the store up") as told:
        preflight(store, store)
    assert "\n" not in str(told.value)
    assert "test-secret" not in str(told.value)


def test_an_unpickled_store_reads_what_the_pickled_one_wrote(s3):
    store = open_store(f"{s3.uri}/pickled")
    store.put("x", b"content")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert again.get("x") == b"content"


def test_an_output_that_is_a_file_is_told(tmp_path):
    (tmp_path / "out").write_text("kept")
    with pytest.raises(UserError, match="cannot write"):
        open_store(str(tmp_path / "out")).check_writable()
    assert (tmp_path / "out").read_text() == "kept"


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="no /proc, where even root cannot write"
)
def test_an_output_where_nobody_can_write_is_told():
    with pytest.raises(UserError, match="cannot write"):
        open_store("/proc/out").check_writable()


def test_a_folder_where_one_file_was_wanted_is_told(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder"):
        read_uri(str(tmp_path / "folder"))


def test_a_prefix_of_any_letters_is_kept_whole(s3):
    store = open_store(f"{s3.uri}/a#b?c%20d&e+f ü")
    store.put("x", b"content")
    assert [entry.key for entry in store.list()] == ["x"]
    assert (s3.folder / "a#b?c%20d&e+f ü" / "x").read_bytes() == b"content"


def test_a_put_is_one_plain_request_that_old_servers_accept(monkeypatch, fresh_clients):
    """No streamed checksum, no chunks, a known length, the bucket in the path."""
    seen: list[tuple[str, dict[str, str]]] = []

    class OldServer(BaseHTTPRequestHandler):
        def do_PUT(self):
            seen.append((self.path, {name.lower(): v for name, v in self.headers.items()}))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), OldServer) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        open_store("s3://bucket/p").put("a b.png", b"12345")
    ((path, headers),) = seen
    assert path == "/bucket/p/a%20b.png"
    assert headers["content-length"] == "5"
    assert "transfer-encoding" not in headers
    assert "aws-chunked" not in headers.get("content-encoding", "")
    assert not [name for name in headers if "checksum" in name or "trailer" in name]


def test_an_object_that_changed_since_it_was_listed_is_not_read_for_it(store):
    store.put("x", b"one")
    before = next(store.list()).version
    assert store.get("x", before) == b"one"
    store.put("x", b"two!")
    with pytest.raises(ChangedObject):
        store.get("x", before)


def test_an_object_is_put_only_where_there_is_none(store):
    assert store.put_new("x", b"mine")
    assert not store.put_new("x", b"theirs")
    assert store.get("x") == b"mine"


def test_a_store_that_fails_is_asked_again_until_patience_runs_out(s3, tmp_path):
    open_store(f"{s3.uri}/{tmp_path.name}").put("x", b"content")
    with Proxy(s3.endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"{s3.uri}/{tmp_path.name}", patience_s=60)
        proxy.fault = lambda method, path, number: "503" if number < 3 else None
        assert store.get("x") == b"content"
        assert len(proxy.requests) == 4
        client = store._client()  # which waits long for an answer, so that each is a 500
        patch.setattr(type(store), "_client", lambda _: client)
        store = store.with_patience(1)
        proxy.fault = lambda *_: "500"
        for ask in (store.get, store.delete, lambda key: next(store.list(key))):
            with pytest.raises(StoreDown, match=r"InternalError \(500\)"):
                ask("x")
        assert not store.answers()
        proxy.fault = lambda method, *_: "403"
        with pytest.raises(PermissionError):
            store.get("x")
        assert store.answers()


# ---- http and https mixed up


@pytest.fixture
def tls_endpoint(tmp_path: Path) -> Iterator[str]:
    """A real server that speaks TLS alone, and closes on anything else."""
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    pair = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    subprocess.run([*words, *pair], check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_plain_endpoint_given_as_https_is_told(s3, monkeypatch, fresh_clients, hurried):
    wrong = s3.endpoint.replace("http:", "https:")
    monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
    told = f"AWS_ENDPOINT_URL {wrong}: the endpoint speaks plain http, use {s3.endpoint}"
    for check in ("check_readable", "check_writable", "exists"):
        with pytest.raises(UserError, match=re.escape(told)):
            getattr(open_store(s3.uri), check)()


def test_a_tls_endpoint_given_as_http_is_told(
    s3, tls_endpoint, monkeypatch, fresh_clients, hurried
):
    wrong = tls_endpoint.replace("https:", "http:")
    monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
    told = f"AWS_ENDPOINT_URL {wrong}: the endpoint speaks https, use {tls_endpoint}"
    with pytest.raises(UserError, match=re.escape(told)):
        open_store(s3.uri).check_readable()


def test_an_answer_of_404_or_403_is_told_with_more_than_the_uri(s3, monkeypatch):
    """As where the endpoint's address holds the bucket's name already."""
    store = open_store(f"{s3.uri}/x")
    for kind, told in (
        (FileNotFoundError, "the store knows no such bucket, check its name and AWS_ENDPOINT_URL"),
        (PermissionError, "permission denied (check the bucket's name and AWS_ENDPOINT_URL)"),
    ):

        def fail(*_: object, kind: type[OSError] = kind) -> None:
            raise kind(store.uri())

        monkeypatch.setattr(type(store), "_ask", fail)
        with pytest.raises(UserError, match=re.escape(f"{store.uri()}: {told}")):
            store.check_readable()
