"""Ceph's object gateway on loopback: a monitor, a store in memory and radosgw, without a disk.

From Debian's packages: apt-get install radosgw ceph-mon ceph-osd. It starts in some 15 s.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from processes import free_port, kill, s3_answers, wait_until

PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_S = 180  # seconds; 15 where nothing else runs
SETTINGS = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}/0]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc  # radosgw's own is secure, which needs keys
mon data avail crit = 1
mon allow pool size one = true
mon max pg per osd = 1000
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 268435456
osd class load list = *
osd class default list = *
run dir = {root}
admin socket = {root}/$name.sock
log file = {root}/$name.log
mon data = {root}/mon
osd data = {root}/osd
rgw data = {root}/rgw
rgw frontends = beast endpoint=127.0.0.1:{web}
rgw rados pool pg num min = 1
"""


def is_installed() -> bool:
    return all(map(shutil.which, PROGRAMS))


@contextmanager
def radosgw_server(key: str, secret: str) -> Iterator[str]:
    """The endpoint of a gateway that knows these keys, with a `bucket`."""
    root, fsid, disk = Path(tempfile.mkdtemp(prefix="rgw-")), uuid.uuid4(), uuid.uuid4()
    port, web = free_port(), free_port()
    for folder in ("mon", "osd", "rgw"):
        (root / folder).mkdir()
    (root / "conf").write_text(SETTINGS.format(fsid=fsid, port=port, root=root, web=web))
    started: list[subprocess.Popen[bytes]] = []

    def words(program: str, *more: object) -> list[str]:
        return [program, "-c", f"{root}/conf", *map(str, more)]

    def do(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=START_S)

    def start(*command: object) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        started.append(subprocess.Popen([*words(*command), "-f"], **quiet))

    try:
        place = f"[v2:127.0.0.1:{port}/0]"
        do("monmaptool", "--create", "--fsid", str(fsid), "--addv", "a", place, f"{root}/map")
        do(*words("ceph-mon", "--mkfs", "-i", "a", "--monmap", f"{root}/map"))
        start("ceph-mon", "-i", "a")
        do(*words("ceph", "--connect-timeout", START_S, "osd", "new", disk))
        do(*words("ceph-osd", "-i", 0, "--mkfs", "--osd-uuid", disk))
        start("ceph-osd", "-i", 0)
        own = ("--uid", "test", "--display-name", "test", "--access-key", key)
        do(*words("radosgw-admin", "user", "create", *own, "--secret-key", secret))
        start("radosgw", "-n", "client.rgw")
        endpoint = f"http://127.0.0.1:{web}"
        wait_until(lambda: s3_answers(endpoint), "radosgw", START_S)
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="bucket")
        yield endpoint
    finally:
        for process in reversed(started):
            kill(process.pid)
            process.wait()
        shutil.rmtree(root, ignore_errors=True)
