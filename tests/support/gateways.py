"""S3 servers as there are others: before a real one stands a proxy that answers as they do.

with Proxy(s3.endpoint, edit=without_etags) as proxy: ...
with Proxy(s3.endpoint, edit=Unordered(s3.endpoint, seed=1)) as proxy: ...
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

import boto3
from proxy import Answer

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PAGE = 5  # objects in a page of an unordered listing


def without_etags(method: str, path: str, answer: Answer) -> Answer:
    """As JuiceFS's gateway by default: none in headers, an empty one in listings."""
    headers = [one for one in answer.headers if one[0].lower() != "etag"]
    if not is_listing(method, path):
        return replace(answer, headers=headers)
    body = re.sub(rb"<ETag>.*?</ETag>", b"<ETag></ETag>", answer.body)
    return replace(answer, headers=headers, body=body, length=str(len(body)))


@dataclass
class Unordered:
    """Listings in an order of their own, page for page, which no key follows from."""

    target: str
    """Endpoint of the server, which is asked for all that it lists."""
    seed: int
    etags: bool = True
    again: str = ""
    """A key that is listed twice."""

    def __call__(self, method: str, path: str, answer: Answer) -> Answer:
        if not self.etags:
            answer = without_etags(method, path, answer)
        if not is_listing(method, path):
            return answer
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        found = self._listed(unquote(urlsplit(path).path).strip("/"), query.get("prefix", ""))
        start = int(query.get("continuation-token", 0))  # which the server does not know
        if not start and answer.status != 200:
            return answer
        end = start + min(PAGE, int(query.get("max-keys", PAGE)))
        more = end < len(found)
        body = "".join(
            [
                "<ListBucketResult><EncodingType>url</EncodingType>",
                *found[start:end],
                f"<IsTruncated>{str(more).lower()}</IsTruncated>",
                f"<NextContinuationToken>{end}</NextContinuationToken>" * more,
                "</ListBucketResult>",
            ]
        ).encode()
        return Answer(200, [("Content-Type", "application/xml")], body, str(len(body)))

    def _listed(self, bucket: str, prefix: str) -> list[str]:
        pages = (
            _client(self.target)
            .get_paginator("list_objects_v2")
            .paginate(Bucket=bucket, Prefix=prefix)
        )
        items = [item for page in pages for item in page.get("Contents", [])]
        items += [item for item in items if item["Key"] == self.again]
        items.sort(key=lambda item: item["Key"])
        random.Random(self.seed).shuffle(items)
        return [
            f"<Contents><Key>{quote(item['Key'])}</Key><Size>{item['Size']}</Size>"
            f"<LastModified>{item['LastModified']:%Y-%m-%dT%H:%M:%S.000Z}</LastModified>"
            f"<ETag>{escape(item['ETag']) if self.etags else ''}</ETag></Contents>"
            for item in items
        ]


@cache
def _client(endpoint: str) -> S3Client:
    return boto3.client("s3", endpoint_url=endpoint)


def is_listing(method: str, path: str) -> bool:
    return method == "GET" and "list-type=2" in path
