"""S3 servers that are unlike Amazon's: without etags, out of order, folding names, hiding folders.

Run: pytest tests/test_gateways.py
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import boto3
import pytest
from gateways import Unordered, is_listing, without_etags
from processes import finish, wait_until
from proxy import Answer, Proxy
from verbs import rows

from segpipe.errors import ChangedObject, RejectedImage, UserError
from segpipe.scaling import measurement
from segpipe.segment import spool
from segpipe.segment.compact import compact, count_missing_results, result_groups
from segpipe.segment.fetch import fetch
from segpipe.segment.inputs import Inputs, open_source
from segpipe.segment.keys import mask_key
from segpipe.segment.manifest import list_inputs, written_ids
from segpipe.segment.parts import commit_part
from segpipe.storage import Entry, Store, is_timed, open_store
from segpipe.storage import s3 as s3_module
from segpipe.train import states


@pytest.fixture
def proxy(s3, monkeypatch) -> Iterator[Proxy]:
    with Proxy(s3.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


# ---- without etags


def test_without_etags_size_and_second_of_the_last_change_are_the_version(proxy, tmp_path):
    proxy.edit = without_etags
    store = open_store(f"s3://bucket/{tmp_path.name}")
    store.put("x", b"one")
    [entry] = store.list()
    assert is_timed(entry.version)
    assert entry.version.startswith("bytes=3,modified=20")
    assert store.head("x") == entry
    assert store.get("x", entry.version) == b"one"
    proxy.requests.clear()
    store.put("x", b"longer")
    with pytest.raises(ChangedObject):
        store.get("x", entry.version)
    later = next(store.list()).version

    def again() -> bool:
        store.put("x", b"LONGER")
        return next(store.list()).version != later

    wait_until(again, "second")


def test_an_etag_that_only_some_answers_tell_is_no_change(moto, monkeypatch, tmp_path):
    """Listings with and without, requests without and with; moto honours If-Match."""
    with Proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"s3://bucket/{tmp_path.name}")
        store.put("x", b"one")
        for in_listings in (True, False):
            proxy.edit = lambda method, path, answer, told=in_listings: (
                answer if is_listing(method, path) == told else without_etags(method, path, answer)
            )
            [entry] = store.list()
            assert is_timed(entry.version) == (not in_listings)
            proxy.requests.clear()
            assert store.get("x", entry.version) == b"one"
            assert len(proxy.requests) == 1 + in_listings  # then only a listing tells


@pytest.mark.cluster
def test_a_run_on_a_store_without_etags_or_order_is_one_that_ends_and_is_done(
    s3, photographs, tmp_path
):
    """Said once, and the same command finds nothing to do, in whatever order it is listed."""
    source, place = open_store(f"s3://bucket/{tmp_path.name}/in"), f"s3://bucket/{tmp_path.name}"
    data = next(photographs.iterdir()).read_bytes()
    for number in range(7):
        source.put(f"{number}.tif", data if number % 3 else b"no photograph")
    words = ["-m", "segpipe", "segment", "--input", f"{place}/in", "--output", f"{place}/out"]
    words += ["--workers", "1", "--max-rejected", "1", "--checkpoint", "segnet-lite"]
    told = []
    for seed in range(3):
        with Proxy(s3.endpoint, edit=Unordered(s3.endpoint, seed, etags=False)) as proxy:
            env = {"AWS_ENDPOINT_URL": proxy.endpoint}
            done = finish(*words, env=env)
            assert done.returncode == 0, done.stderr
            told.append(done)
            status = finish("-m", "segpipe", "status", "--output", f"{place}/out", env=env)
            assert "7 of 7 inputs, 3 rejected" in status.stdout
    assert [done.stderr.count("keeps no etags") for done in told] == [1, 1, 1]
    assert "4 masks, 3 rejected" in told[0].stdout
    assert all("all 7 inputs are done" in done.stdout for done in told[1:])
    output = open_store(f"{place}/out")
    assert [row["path"] for row in rows(output)] == [f"{number}.tif" for number in range(7)]
    assert all(is_timed(row["version"]) for row in rows(output))


# ---- out of order


@pytest.fixture
def any_order(s3, proxy, tmp_path) -> Store:
    """A store whose next listing has another order."""
    proxy.edit = Unordered(s3.endpoint, seed=0)

    def next_order(method: str, path: str, number: int) -> None:
        if is_listing(method, path) and "continuation-token" not in path:
            proxy.edit.seed += 1

    proxy.before = next_order
    return open_store(f"s3://bucket/{tmp_path.name}")


def test_inputs_come_in_order_of_keys_whatever_the_listings(any_order):
    names = [f"{folder}/{n:02d}.jpg" for folder in ("a", "a-b", "ä", "Z") for n in range(6)]
    for name in names:
        any_order.put(name, b"x")
    assert [e.key for e in any_order.list()] != [e.key for e in any_order.list()]  # it shuffles
    inputs = Inputs(any_order)
    assert [entry.key for entry in inputs] == sorted(names)
    first, second = list_inputs(inputs), list_inputs(inputs)
    assert (first.digest, first.num_inputs) == (second.digest, len(names))


def test_a_key_that_is_listed_twice_is_one_input_and_told(s3, proxy, tmp_path):
    store = open_store(f"s3://bucket/{tmp_path.name}")
    for number in range(12):
        store.put(f"{number}.jpg", b"x")
    proxy.edit = Unordered(s3.endpoint, seed=3, again=f"{tmp_path.name}/7.jpg")
    inputs = Inputs(store)
    assert [entry.key for entry in inputs] == sorted(f"{n}.jpg" for n in range(12))
    assert inputs.skipped == {"listed again under the same name": 1}


def test_parts_results_states_and_pages_are_found_in_any_order(any_order, monkeypatch):
    monkeypatch.setattr("segpipe.segment.manifest.PAGE_ROWS", 2)
    monkeypatch.setattr("segpipe.segment.compact.RESULT_BYTES", 1)
    monkeypatch.setattr("segpipe.segment.compact.ROW_GROUP_BYTES", 1)
    listed = [Entry(f"{n:02d}.jpg", 1, "v") for n in range(14)]
    manifest = list_inputs(listed)
    manifest.write(any_order)
    for n, one in enumerate(listed):
        row = {"path": one.key, "version": "v", "status": "ok", "finished": float(n)}
        commit_part(any_order, [row])
    assert written_ids(any_order).tolist() == manifest.ids().tolist()
    summaries = [compact(any_order, manifest) for _ in range(2)]
    assert summaries[0] == summaries[1]
    assert len(summaries[0]["results"]) == 14
    assert count_missing_results(any_order, summaries[0]) == 0
    tables = [read(["path"])["path"].to_pylist() for read in result_groups(any_order, {})]
    assert [path for table in tables for path in table] == [one.key for one in listed]
    for epoch in range(1, 9):
        states.put(any_order, states.State({}, {"epoch": epoch}))
    assert states.finished_epochs(any_order) == 8
    assert len(list(any_order.list(states.FOLDER))) == 2 * states.KEPT
    for epoch in range(1, 9):
        row = f"step,wait_s,step_s,ended\n1,0,0,{epoch}\n"
        any_order.put(f"_segpipe/steps/epoch-{epoch:05d}.csv", row.encode())
    assert measurement._steps(any_order)[:, 2].tolist() == list(range(1, 9))


def test_a_store_that_takes_no_notice_of_conditions_is_believed_by_its_listing_in_any_order(
    s3, proxy, tmp_path
):
    """The object of this key among others that begin so."""
    store = open_store(f"s3://bucket/{tmp_path.name}")
    for name in ("x", *(f"x{n}" for n in range(20))):
        store.put(name, name.encode())
    unordered = Unordered(s3.endpoint, seed=1)

    def other_etag(method: str, path: str, answer: Answer) -> Answer:
        if is_listing(method, path):
            return unordered(method, path, answer)
        headers = [one for one in answer.headers if one[0].lower() != "etag"]
        return replace(answer, headers=[*headers, ("ETag", '"of-this-answer"')])

    proxy.edit = other_etag
    version = next(entry.version for entry in store.list("x") if entry.key == "x")
    assert store.get("x", version) == b"x"
    proxy.edit = lambda *asked: replace(other_etag(*asked), status=200)
    with pytest.raises(ChangedObject):
        store.get("x", "an older one")


@pytest.mark.parametrize("number", [3, 40, 400])
def test_entries_out_of_order_are_sorted_over_pages_and_runs(monkeypatch, number):
    monkeypatch.setattr(spool, "PAGE_ROWS", 4)
    monkeypatch.setattr(spool, "RUN_PAGES", 3)
    letters = random.Random(number)
    keys = ["".join(letters.choices("aZ/_.é日\U0001f441~", k=4)) for _ in range(number)]
    listed = [Entry(key, place, f"{place}") for place, key in enumerate(keys)]
    found = list(spool.in_order(listed))
    assert found == sorted(listed, key=lambda entry: entry.key.encode())  # which is stable
    assert list(spool.in_order(found)) == found
    assert list(spool.in_order([])) == []


def test_a_listing_that_does_not_go_on_ends_in_an_error(proxy, tmp_path):
    """Neither a listing cut short in silence nor one without an end."""
    store = open_store(f"s3://bucket/{tmp_path.name}")
    store.put("x", b"x")
    for token in ("", "<NextContinuationToken>same</NextContinuationToken>"):
        page = f"<ListBucketResult><IsTruncated>true</IsTruncated>{token}</ListBucketResult>"
        answer = Answer(200, [], page.encode(), str(len(page)))
        proxy.edit = lambda *_, answer=answer: answer
        with pytest.raises(OSError, match=f"{tmp_path.name}: the store's listing neither"):
            list(store.list())


# ---- an output within the input


def test_an_output_in_the_input_is_known_in_any_order_of_the_listing(any_order):
    own = ["_segpipe/settings.json", "_segpipe/parts/x.parquet", "masks/1.jpg.png", "summary.json"]
    own += [f"probabilities/{n}.jpg.png" for n in range(8)]
    for name in [f"{n}.jpg" for n in range(9)]:
        any_order.put(name, b"x")
    for name in own:
        any_order.put(f"trial/{name}", b"{}")
        any_order.put(f"deep/er/{name}", b"{}")
    for limit in (None, 5):
        for _ in range(4):  # four orders
            inputs = Inputs(any_order, limit=limit)
            assert {entry.key for entry in inputs} <= {f"{n}.jpg" for n in range(9)}
            assert len(list(inputs)) == (limit or 9)
            assert inputs.outputs == {"trial/", "deep/er/"}
            if limit is None:
                assert inputs.skipped.total() == 2 * len(own)


def test_no_request_is_made_for_a_key(any_order, proxy):
    """To know an output costs nothing beside the listing."""
    for number in range(3):
        any_order.put(f"o/masks/{number}.png", b"x")
        any_order.put(f"{number}.png", b"x")
    proxy.requests.clear()
    assert len(list(Inputs(any_order))) == 6  # masks/ of somebody else
    assert len(proxy.requests) == 2  # of five keys each


# ---- names that a server folds


class Folding:
    """Takes // for /, in what is asked for or in what it lists."""

    def __init__(self, target: str, listed: bool) -> None:
        self.target, self.listed = target, listed

    def __call__(self, method: str, path: str, answer: Answer) -> Answer:
        if is_listing(method, path) and self.listed:
            body = answer.body.replace(b"//", b"/").replace(b"http:/", b"http://")
            return replace(answer, body=body, length=str(len(body)))
        if method == "GET" and "//" in path:
            body = b"<Error><Code>NoSuchKey</Code></Error>"
            return Answer(404, [], body, str(len(body)))
        return answer


@pytest.fixture
def folding(moto, monkeypatch, tmp_path) -> Iterator[tuple[Store, Proxy]]:
    """Two keys that differ in a slash; moto keeps both."""
    with Proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"s3://bucket/{tmp_path.name}")
        for key in ("a//x.jpg", "a/x.jpg", "/y.jpg", "y.jpg"):
            store.put(key, key.encode())
        yield store, proxy


def test_keys_that_differ_in_a_slash_are_inputs_with_masks_of_their_own(folding):
    store, _ = folding
    entries = list(Inputs(store))
    assert [entry.key for entry in entries] == ["/y.jpg", "a//x.jpg", "a/x.jpg", "y.jpg"]
    assert [fetch(store, entry) for entry in entries] == [e.key.encode() for e in entries]
    masks = {mask_key(entry.key) for entry in entries}
    assert len(masks) == 4
    assert not any("//" in mask for mask in masks)


def test_a_key_that_a_server_lists_and_does_not_give_is_a_rejection(folding, moto):
    store, proxy = folding
    proxy.edit = Folding(moto, listed=False)
    found = {entry.key: fetch(store, entry) for entry in Inputs(store)}
    lost = [key for key, data in found.items() if isinstance(data, RejectedImage)]
    assert lost == ["/y.jpg", "a//x.jpg"]
    assert found["a/x.jpg"] == b"a/x.jpg"


def test_keys_that_a_server_lists_under_one_name_are_one_input_and_counted(folding, moto):
    store, proxy = folding
    proxy.edit = Folding(moto, listed=True)
    inputs = Inputs(store)
    assert [entry.key for entry in inputs] == ["a/x.jpg", "y.jpg"]
    assert inputs.skipped == {"listed again under the same name": 2}


def test_a_listing_of_other_names_than_were_asked_for_is_refused(folding, moto, tmp_path):
    """Else the first letters of each key were cut off."""
    _, proxy = folding
    proxy.edit = Folding(moto, listed=True)
    store = open_store(f"s3://bucket/{tmp_path.name}//")
    with pytest.raises(UserError, match=f"{tmp_path.name}: the store lists .* without //"):
        list(store.list())


# ---- objects that mark folders


def test_an_empty_object_that_hides_a_folder_is_named(s3, tmp_path, monkeypatch):
    """As rclone has it: `m/` is kept as a file `m`, below which nothing can lie."""
    monkeypatch.setattr(s3_module, "PREFLIGHT_S", 0.5)
    place = f"s3://bucket/{tmp_path.name}"
    client = boto3.client("s3", endpoint_url=s3.endpoint)
    client.put_object(Bucket="bucket", Key=f"{tmp_path.name}/m/", Body=b"")
    assert [entry.key for entry in open_store(place).list()] == ["m"]
    with pytest.raises(UserError, match=f"--input {place}/m: is an empty object, as folders"):
        open_source(f"{place}/m", 1.0)
    for output in ("m", "m/masks/deeper"):
        with pytest.raises(UserError) as told:
            open_store(f"{place}/{output}").check_writable()
        assert f"the empty object {place}/m is in the way, delete it" in str(told.value)


@pytest.mark.parametrize("server", ["moto", "s3"])
def test_a_marked_folder_on_a_server_that_keeps_both_is_read(
    request, monkeypatch, tmp_path, server
):
    found = request.getfixturevalue(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", found if server == "moto" else found.endpoint)
    store = open_store(f"s3://bucket/{tmp_path.name}/sub")
    store.put("x.jpg", b"x")
    if server == "moto":
        key = quote(f"{tmp_path.name}/sub/")
        boto3.client("s3", endpoint_url=found).put_object(Bucket="bucket", Key=key, Body=b"")
    assert [entry.key for entry in Inputs(open_source(store.uri(), 1.0))] == ["x.jpg"]
    store.check_writable()
