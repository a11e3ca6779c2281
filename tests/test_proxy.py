"""The proxy passes a real S3 client's requests on unchanged, and each fault is what it says.

Run: pytest tests/test_proxy.py
"""

import http.client
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError
from mypy_boto3_s3 import S3Client
from proxy import FAULTS, Proxy, random_faults

KEYS = ["a b/ä+%.png", "plain"]
BODY = bytes(range(256)) * 1000


@contextmanager
def proxied(s3, *faults: str | None) -> Iterator[tuple[Proxy, S3Client]]:
    """The first requests meet these faults in turn; a client that tries once."""

    def fault(method: str, path: str, number: int) -> str | None:
        return faults[number] if number < len(faults) else None

    with Proxy(s3.endpoint, fault=fault, stall_s=0.5) as proxy:
        yield proxy, client_of(proxy)


def client_of(proxy: Proxy, tries: int = 1) -> S3Client:
    retries = {"total_max_attempts": tries, "mode": "standard"}
    return boto3.client("s3", endpoint_url=proxy.endpoint, config=Config(retries=retries))


def read(client: S3Client, key: str) -> bytes:
    return client.get_object(Bucket="bucket", Key=key)["Body"].read()


@pytest.mark.parametrize("key", KEYS)
def test_objects_come_back_through_the_proxy_as_they_went(s3, key):
    with proxied(s3) as (proxy, client):
        client.put_object(Bucket="bucket", Key=key, Body=BODY)
        assert read(client, key) == BODY
        assert client.head_object(Bucket="bucket", Key=key)["ContentLength"] == len(BODY)
        client.delete_object(Bucket="bucket", Key=key)
        with pytest.raises(client.exceptions.NoSuchKey):
            read(client, key)
        did = [(method, status) for method, _, status in proxy.requests]
        assert did == [("PUT", 200), ("GET", 200), ("HEAD", 200), ("DELETE", 204), ("GET", 404)]


def test_requests_are_on_record_with_path_and_query(s3):
    with proxied(s3) as (proxy, client):
        client.list_objects_v2(Bucket="bucket", Prefix="none/", MaxKeys=7)
        [(method, path, status)] = proxy.requests
        assert (method, status) == ("GET", 200)
        assert path.startswith("/bucket?list-type=2")
        assert "max-keys=7" in path


@pytest.mark.parametrize(("fault", "code"), [("503", "SlowDown"), ("500", "InternalError")])
def test_an_error_answer_is_s3s_and_does_nothing(s3, fault, code):
    with proxied(s3, fault, fault) as (proxy, client):
        with pytest.raises(ClientError, match=code):
            client.put_object(Bucket="bucket", Key=f"never-{fault}", Body=BODY)
        with pytest.raises(ClientError, match=fault):
            client.head_object(Bucket="bucket", Key=f"never-{fault}")
        assert [status for _, _, status in proxy.requests] == [int(fault)] * 2
    assert not (s3.folder / f"never-{fault}").exists()


@pytest.mark.parametrize(
    ("fault", "took_effect"), [("reset", False), ("refuse", False), ("reset-after", True)]
)
def test_a_lost_answer_took_effect_or_did_not(s3, fault, took_effect):
    with proxied(s3, fault) as (proxy, client):
        with pytest.raises((ConnectionClosedError, HTTPClientError)):
            client.put_object(Bucket="bucket", Key=fault, Body=BODY)
        assert [status for _, _, status in proxy.requests] == [0]
    assert (s3.folder / fault).exists() == took_effect


@pytest.mark.parametrize(
    ("fault", "error"),
    [("reset", ConnectionResetError), ("refuse", http.client.RemoteDisconnected)],
)
def test_a_reset_is_a_reset_and_a_refusal_an_orderly_end(s3, fault, error):
    with proxied(s3, fault) as (proxy, _), pytest.raises(error) as caught:
        raw(proxy, "GET")
    assert type(caught.value) is error


def test_a_truncated_answer_has_the_whole_length_and_half_of_the_body(s3):
    with proxied(s3, None, "truncate") as (_, client):
        client.put_object(Bucket="bucket", Key="whole", Body=BODY)
        answer = client.get_object(Bucket="bucket", Key="whole")
        assert answer["ContentLength"] == len(BODY)
        with pytest.raises(HTTPClientError, match=f"{len(BODY) // 2} bytes read"):
            answer["Body"].read()
        assert read(client, "whole") == BODY


def test_a_stalled_request_comes_late_and_whole(s3):
    with proxied(s3, None, "stall") as (proxy, client):
        client.put_object(Bucket="bucket", Key="late", Body=BODY)
        start = time.monotonic()
        assert read(client, "late") == BODY
        assert time.monotonic() - start >= proxy.stall_s


def test_hooks_run_before_and_after_the_server_has_acted(s3):
    seen = []

    def look(method: str, path: str, number: int) -> None:
        seen.append((method, path, number, (s3.folder / "hooked").exists()))

    with Proxy(s3.endpoint, before=look, after=look) as proxy:
        client_of(proxy).put_object(Bucket="bucket", Key="hooked", Body=b"1")
    assert seen == [("PUT", "/bucket/hooked", 0, done) for done in (False, True)]


def test_random_faults_are_a_function_of_seed_and_number_and_of_every_kind():
    one, same, other = (random_faults(0.3, seed) for seed in (1, 1, 2))
    drawn = [one("GET", "/", number) for number in range(1000)]
    assert drawn[::-1] == [same("PUT", "/x", number) for number in reversed(range(1000))]
    assert drawn != [other("GET", "/", number) for number in range(1000)]
    assert set(drawn) == {None, *FAULTS}
    assert 250 < sum(fault is not None for fault in drawn) < 350


def test_a_client_that_retries_gets_through_random_faults(s3):
    with Proxy(s3.endpoint, fault=random_faults(0.3, seed=326), stall_s=0.1) as proxy:
        client = client_of(proxy, tries=5)
        for number in range(10):
            client.put_object(Bucket="bucket", Key=f"kept-{number}", Body=BODY)
        assert {status for *_, status in proxy.requests} == {0, 200, 500}
    assert all((s3.folder / f"kept-{number}").read_bytes() == BODY for number in range(10))


def test_a_path_is_forwarded_and_recorded_as_it_came(s3):
    path = "//bucket/../a%2Fb?c=%20+d"
    with Proxy(s3.endpoint) as proxy:
        seen = spied(proxy)
        raw(proxy, "GET", path).read()
    assert [request[1] for request in seen] == [path]
    assert [request[1] for request in proxy.requests] == [path]


def test_a_chunked_upload_after_100_continue_arrives_on_a_kept_connection(s3):
    with Proxy(s3.endpoint) as proxy:
        seen, connection = spied(proxy), connect(proxy)
        for _ in range(2):
            headers = {"Transfer-Encoding": "chunked", "Expect": "100-continue"}
            connection.request("PUT", "/", iter([b"ab", b"cde"]), headers, encode_chunked=True)
            connection.getresponse().read()
    assert [body for *_, body in seen] == [b"2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"] * 2


def connect(proxy: Proxy) -> http.client.HTTPConnection:
    address = urlsplit(proxy.endpoint)
    return http.client.HTTPConnection(address.hostname, address.port, timeout=10)


def raw(proxy: Proxy, method: str, path: str = "/bucket") -> http.client.HTTPResponse:
    connection = connect(proxy)
    connection.request(method, path)
    return connection.getresponse()


def spied(proxy: Proxy) -> list[tuple[str, str, list[tuple[str, str]], bytes]]:
    """What the proxy forwards from now on."""
    seen, forward = [], proxy.forward
    proxy.forward = lambda *request: seen.append(request) or forward(*request)
    return seen
