"""One behaviour on local disk and on a real S3 server.

Run: pytest tests/test_storage.py
"""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segpipe.errors import UserError
from segpipe.storage import exists, open_store, preflight, read_uri

STRANGE = ["plain.jpg", "with space.jpg", "ä/ö ü.jpg", "a#b?c%20d&e+f.jpg", ".dot/x", "k.png/x"]


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return open_store(str(tmp_path / "store"))
    return open_store(f"{request.getfixturevalue('s3').uri}/{tmp_path.name}")


@pytest.mark.parametrize("key", STRANGE)
def test_what_was_put_is_listed_and_read_and_deleted(store, key):
    store.put(key, b"first")
    store.put(key, b"second one")
    assert store.get(key) == b"second one"
    assert [(e.key, e.bytes) for e in store.list()] == [(key, 10)]
    assert exists(store, key)
    store.delete(key)
    assert not exists(store, key)
    store.delete(key)  # again is no error


def test_a_listing_comes_in_order_and_by_prefix(store):
    keys = ["a.jpg", "a/b.jpg", "a/c/d.jpg", "a0.jpg", "b/x.jpg"]
    for key in reversed(keys):
        store.put(key, b"x")
    assert [entry.key for entry in store.list()] == sorted(keys)
    assert [entry.key for entry in store.list("a/")] == ["a/b.jpg", "a/c/d.jpg"]


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


def test_a_listing_goes_on_after_a_page_of_1000(s3):
    store = open_store(f"{s3.uri}/many")
    for number in range(1100):
        store.put(f"{number:05d}", b"")
    assert len(list(store.list())) == 1100


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
        end = time.monotonic() + 60
        while not list(tmp_path.glob("*.segpipe-tmp")):
            assert time.monotonic() < end
        writer.send_signal(signal.SIGKILL)
    assert [entry.key for entry in store.list()] == ["x"]
    assert len(store.get("x")) in (3, 50_000_000)


def test_a_wrong_secret_is_told_without_the_secret(s3, monkeypatch):
    from segpipe import storage

    storage._s3_client.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret-word")
    try:
        with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as refusal:
            preflight(open_store(s3.uri), open_store(s3.uri))
    finally:
        storage._s3_client.cache_clear()
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
