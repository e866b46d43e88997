"""The files source over moto's S3 and a web server: what was planned is read, or it is an error; never a mix."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlflowkit.adapters.data_sources.files_source import FilesSource
from mlflowkit.data_access.connections import CredentialReference, S3Connection
from mlflowkit.data_access.remote_source import RemoteAccess, fetch_remote, resolve_remote
from mlflowkit.data_access.transfer import TransferLimits
from mlflowkit.errors import DataError
from mlflowkit.testing import RemoteSourceContract
from mlflowkit.testing.source_suites import HASTE
from tests.support.tools import require_tool

SECRET = "canary/secret+of=store"
KEY = "AKIACANARY0000000000"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server of moto, which is a process with libraries of its own."""
    tool = require_tool("moto_server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen([tool, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/data.json", timeout=5).close()
                break
            time.sleep(0.1)
        assert server.poll() is None, f"{tool} has ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", KEY)
    monkeypatch.setenv("STORE_SECRET", SECRET)


def connection(endpoint: str) -> S3Connection:
    key, secret = CredentialReference(env="STORE_KEY"), CredentialReference(env="STORE_SECRET")
    return S3Connection(kind="s3", endpoint=endpoint, region="us-east-1", access_key=key, secret=secret)


@pytest.mark.delivery
class TestVersionedBucket(RemoteSourceContract):
    """Objects are held to their versions: what was planned is read though it was replaced."""

    pinned_by = "versions"
    limits = TransferLimits(read_seconds=20.0, stall_seconds=60.0, first_wait=0.01, last_wait=0.05)

    @pytest.fixture(autouse=True)
    def _bucket(self, endpoint: str, request: pytest.FixtureRequest) -> None:
        import boto3

        self.endpoint = endpoint
        self.bucket = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:40]
        self.client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )
        self.client.create_bucket(Bucket=self.bucket)
        status = "Enabled" if self.pinned_by == "versions" else "Suspended"
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": status})

    def source(self) -> FilesSource:
        url = f"s3://{self.bucket}/loans/"
        return FilesSource(kind="files", connection="store", url=url, format="csv", pinned_by=self.pinned_by)

    def connections(self) -> Mapping[str, Any]:
        return {"store": connection(self.endpoint)}

    def put(self, files: Mapping[str, bytes]) -> None:
        for entry in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", []):
            if entry["Key"].removeprefix("loans/") not in files:
                self.client.delete_object(Bucket=self.bucket, Key=entry["Key"])
        for path, content in files.items():
            self.client.put_object(Bucket=self.bucket, Key=f"loans/{path}", Body=content)

    def lose(self, path: str) -> bool:
        key = f"loans/{path}"
        for entry in self.client.list_object_versions(Bucket=self.bucket, Prefix=key).get("Versions", []):
            self.client.delete_object(Bucket=self.bucket, Key=key, VersionId=entry["VersionId"])
        return True

    def secrets(self) -> tuple[str, ...]:
        return (SECRET, KEY)


@pytest.mark.delivery
class TestBucket(TestVersionedBucket):
    """Objects are held to their ETags: what was replaced is an error."""

    pinned_by = "etag"

    def damage(self, path: str) -> bool:
        self.client.put_object(Bucket=self.bucket, Key=f"loans/{path}", Body=b"x,y\n1,8\n")
        return True

    def test_an_object_that_is_replaced_while_it_is_read_is_no_mix(self, tmp_path: Path) -> None:
        big = bytes(range(256)) * 20_000
        for other in (big[::-1], big[:-1], big + b"1"):
            self.put({"a.csv": big})
            snapshot = self.resolved(tmp_path)
            access = self.access(tmp_path)
            identity = access.cache.identity(snapshot.uri, snapshot.objects[0])
            with access.cache.part(identity) as part:
                assert part is not None
                part.write(big[:1_000_000])  # what an earlier run had received
            self.put({"a.csv": other})
            with pytest.raises(DataError, match=r"a\.csv was replaced after the run was planned \(412"):
                fetch_remote(self.source(), access, snapshot)

    def test_a_bucket_without_versions_is_told(self, tmp_path: Path) -> None:
        self.put({"a.csv": b"x\n1\n"})
        asked = self.source().model_copy(update={"pinned_by": "versions"})
        with pytest.raises(DataError, match="the bucket keeps none") as caught:
            resolve_remote(asked, self.access(tmp_path))
        assert caught.value.hint.startswith("pinned_by: etag")

    def test_a_bucket_that_is_not_there_is_told(self, tmp_path: Path) -> None:
        asked = self.source().model_copy(update={"url": "s3://no-such-bucket-here/loans/"})
        with pytest.raises(DataError, match="there is no bucket no-such-bucket-here"):
            resolve_remote(asked, self.access(tmp_path))

    def test_an_etag_of_parts_is_opaque(self, tmp_path: Path) -> None:
        upload = self.client.create_multipart_upload(Bucket=self.bucket, Key="loans/a.csv")["UploadId"]
        keys = {"Bucket": self.bucket, "Key": "loans/a.csv", "UploadId": upload}
        part = self.client.upload_part(**keys, PartNumber=1, Body=b"x,y\n1,2\n")
        parts = [{"ETag": part["ETag"], "PartNumber": 1}]
        self.client.complete_multipart_upload(**keys, MultipartUpload={"Parts": parts})
        snapshot = self.resolved(tmp_path)
        assert snapshot.objects[0].digest.startswith("etag:")
        assert self.fetched(tmp_path, snapshot) == {"a.csv": b"x,y\n1,2\n"}


class _Web(BaseHTTPRequestHandler):
    content, tag, heeds = b"x,y\n1,2\n", '"v1"', True

    def do_GET(self) -> None:
        wanted = self.headers.get("If-Match")
        if self.heeds and wanted not in (None, self.tag):
            self.send_error(412)
            return
        self.send_response(200)
        for name, value in (("ETag", self.tag), ("Content-Length", str(len(self.content)))):
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[tuple[str, type[_Web]]]:
    handler = type("Web", (_Web,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/data/loans.csv", handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_of_a_web_server_is_read_as_it_was_planned(
    tmp_path: Path, web: tuple[str, type[_Web]], heeds: bool
) -> None:
    """Also from a server that does not heed If-Match."""
    url, server = web
    server.heeds = heeds
    source = FilesSource(kind="files", url=url, format="csv")
    access = RemoteAccess(tmp_path, tmp_path / "state", limits=HASTE)
    snapshot = resolve_remote(source, access)
    assert [(item.path, item.size, item.digest) for item in snapshot.objects] == [("loans.csv", 8, 'etag:"v1"')]
    server.content, server.tag = b"x,y\n1,9\n", '"v2"'
    with pytest.raises(DataError, match=r"was replaced after the run was planned") as caught:
        fetch_remote(source, access, snapshot)
    assert caught.value.hint
    again = resolve_remote(source, access)
    assert again.tree != snapshot.tree
    assert fetch_remote(source, access, again)["loans.csv"].read_bytes() == b"x,y\n1,9\n"


def test_a_server_that_says_nothing_of_the_content_is_refused(tmp_path: Path, web: tuple[str, type[_Web]]) -> None:
    url, server = web
    server.tag = ""
    with pytest.raises(DataError, match="neither an ETag nor Last-Modified"):
        resolve_remote(FilesSource(kind="files", url=url, format="csv"), RemoteAccess(tmp_path, tmp_path / "state"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"url": "gs://bucket/a/"}, "endpoint: https://storage.googleapis.com"),
        ({"url": "https://host/a.csv?signature=1"}, "a signed URL is a secret"),
        ({"url": "https://host/"}, "the URL of one file"),
        ({"url": "s3://bucket/../a"}, "without .."),
        ({"url": "ftp://host/a.csv"}, "expected a URL such as"),
        ({"url": "https://host/a.csv", "pinned_by": "versions"}, "go with s3:// only"),
    ],
)
def test_keys_that_cannot_be_right(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FilesSource(kind="files", format="csv", **keys)


def test_credentials_that_expire_are_read_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    from mlflowkit.adapters.data_sources.s3_store import S3Store

    read: list[str] = []

    class Expired:
        def list_objects_v2(self, **options: Any) -> Any:
            answer = {"Error": {"Code": "ExpiredToken", "Message": "old"}, "ResponseMetadata": {"HTTPStatusCode": 400}}
            if read[-1] == "old":
                raise ClientError(answer, "ListObjectsV2")
            return {"Contents": [{"Key": "a.csv", "ETag": f'"{"0" * 32}"', "Size": 1}]}

    def new_client(store: S3Store) -> Expired:
        read.append(store.access.secrets.read(CredentialReference(env="STORE_SECRET")))
        return Expired()

    monkeypatch.setattr(S3Store, "_new_client", new_client)
    access = RemoteAccess(tmp_path, tmp_path / "state")
    monkeypatch.setenv("STORE_SECRET", "old")
    store = S3Store("b", S3Connection(kind="s3"), access, True)
    assert store._client() is not None
    monkeypatch.setenv("STORE_SECRET", "new")
    assert [item.path for item in store.objects("", "etag")] == ["a.csv"]
    monkeypatch.setenv("STORE_SECRET", "old")
    with pytest.raises(DataError, match="the credentials expired"):
        list(S3Store("b", S3Connection(kind="s3"), access, True).objects("", "etag"))
    assert read == ["old", "new", "old", "old"]
