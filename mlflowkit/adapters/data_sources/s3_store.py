"""Objects of a store with the S3 protocol, through boto3: listed once, and read as they were listed or not at all.

Every GET carries If-Match or a VersionId, also one that resumes: an object that is replaced meanwhile is an error, and
never the beginning of one with the end of another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from mlflowkit.data_access.connections import S3Connection
from mlflowkit.data_access.remote_source import RemoteAccess
from mlflowkit.data_access.transfer import TransientError
from mlflowkit.errors import DataError
from mlflowkit.system.extras import require_extra
from mlflowkit.system.text import first_line, shell_word
from mlflowkit.values import DataObject

CONNECT_SECONDS = 5
MAX_OBJECTS = 200_000
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired")
TRANSIENT = ("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "InternalError", "ServiceUnavailable")
SEPARATOR = " "
"""Between the version (none for an ETag) and the key, in the locator of an object: no VersionId has a blank."""
Pin = Literal["etag", "versions"]


@dataclass
class S3Store:
    """A bucket. ``clients`` holds the one client, made anew once when its credentials expired."""

    bucket: str
    connection: S3Connection
    access: RemoteAccess
    md5: bool
    """Whether ETags of 32 digits are MD5."""
    clients: list[Any] = field(default_factory=list)

    def objects(self, prefix: str, pin: Pin) -> Iterator[DataObject]:
        """The objects whose keys begin with ``prefix``. Raises DataError and TransientError."""
        entries = self._versions(prefix) if pin == "versions" else self._present(prefix)
        for count, entry in enumerate(entries, 1):
            if count > MAX_OBJECTS:
                message = f"{self.where()}: more than {MAX_OBJECTS:,} objects begin with {prefix!r}"
                raise DataError(message, hint="begin data.source.url with the folder that holds the table's files")
            etag, key, version = str(entry["ETag"]).strip('"'), str(entry["Key"]), str(entry.get("VersionId", ""))
            is_md5 = self.md5 and re.fullmatch(r"[0-9a-f]{32}", etag) is not None
            digest = f"{'md5' if is_md5 else 'etag'}:{etag}"
            yield DataObject(key, int(entry["Size"]), digest, f"{version}{SEPARATOR}{key}")

    @contextmanager
    def open(self, item: DataObject, start: int) -> Iterator[S3Stream]:
        """The bytes of an object from an offset, as it was listed. Raises DataError and TransientError."""
        version, _, key = item.locator.partition(SEPARATOR)
        options: dict[str, str] = {"Range": f"bytes={start}-"} if start else {}
        if version:
            options["VersionId"] = version
        else:
            options["IfMatch"] = f'"{item.digest.partition(":")[2]}"'
        answer = self._call("get_object", key, Key=key, **options)
        begins = re.match(r"bytes (\d+)-", answer.get("ContentRange", ""))
        body = answer["Body"]
        try:
            yield S3Stream(body, int(begins[1]) if begins else 0)
        finally:
            body.close()

    def where(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}"

    def _present(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        options: dict[str, Any] = {"Prefix": prefix}
        while True:
            page = self._call("list_objects_v2", prefix, **options)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            options["ContinuationToken"] = self._marker(page, "NextContinuationToken")

    def _versions(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """The present version of each key. Raises DataError for a bucket that keeps none."""
        options: dict[str, Any] = {"Prefix": prefix}
        while True:
            page = self._call("list_object_versions", prefix, **options)
            for entry in page.get("Versions", ()):
                if entry.get("IsLatest"):
                    if entry.get("VersionId") in (None, "", "null"):
                        message = f"{self.where(entry['Key'])} has no version: the bucket keeps none"
                        command = f"aws s3api put-bucket-versioning --bucket {shell_word(self.bucket)}"
                        enable = f"{command} --versioning-configuration Status=Enabled"
                        raise DataError(message, hint=f"pinned_by: etag; or {enable}, and write the object again")
                    yield entry
            if not page.get("IsTruncated"):
                return
            options["KeyMarker"] = self._marker(page, "NextKeyMarker")
            options["VersionIdMarker"] = page.get("NextVersionIdMarker", "")

    def _marker(self, page: Mapping[str, Any], name: str) -> str:
        if not page.get(name):
            message = f"{self.where()}: the list of objects says that there are more, and not from where"
            raise DataError(message, hint="mlkit explain RECIPE connections shows what set its endpoint")
        return str(page[name])

    def _call(self, operation: str, key: str, **options: Any) -> Any:
        """The answer of an operation. Raises TransientError for what may pass, else DataError."""
        from botocore.exceptions import BotoCoreError, ClientError

        while True:
            try:
                return getattr(self._client(), operation)(Bucket=self.bucket, **options)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in EXPIRED and len(self.clients) == 1:
                    self.clients.append(self._new_client())  # secrets are read again: they may have been renewed
                    continue
                raise self._problem(error.response, key) from None
            except BotoCoreError as error:
                raise self._client_problem(error) from None

    def _client(self) -> Any:
        if not self.clients:
            self.clients.append(self._new_client())
        return self.clients[-1]

    def _new_client(self) -> Any:
        require_extra("boto3", "s3", "data.source.url: s3://")
        import boto3
        from botocore.config import Config

        connection, secrets = self.connection, self.access.secrets
        named = {
            "aws_access_key_id": connection.access_key,
            "aws_secret_access_key": connection.secret,
            "aws_session_token": connection.session_token,
        }
        keys = {name: secrets.read(reference) for name, reference in named.items() if reference is not None}
        config = Config(
            retries={"total_max_attempts": 1, "mode": "standard"},  # the transfer's own: they resume
            connect_timeout=CONNECT_SECONDS,
            read_timeout=self.access.limits.read_seconds,
            max_pool_connections=self.access.limits.streams,
            response_checksum_validation="when_required",
        )
        session = boto3.session.Session(region_name=connection.region, **keys)
        region = session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=connection.endpoint, region_name=region, config=config)

    def _problem(self, response: Mapping[str, Any], key: str) -> Exception:
        error, metadata = response.get("Error", {}), response.get("ResponseMetadata", {})
        code, status = str(error.get("Code", "")), int(metadata.get("HTTPStatusCode", 0))
        words = f"{status} {code}: {' '.join(str(error.get('Message', '')).split())[:200]}"
        where = self.where(key)
        if status in (408, 429) or status >= 500 or code in TRANSIENT:
            after = str(metadata.get("HTTPHeaders", {}).get("retry-after", ""))
            return TransientError(f"the store answered {words}", after=float(after) if after.isdigit() else 0.0)
        if status == 412:
            message = f"{where} was replaced after the run was planned ({words})"
            return DataError(message, hint="run the same command again to read the new one")
        if code == "NoSuchBucket":
            return DataError(f"there is no bucket {self.bucket} ({words})", hint="mlkit explain RECIPE data.source.url")
        if status == 404:
            return DataError(f"{where} is not there any more ({words})", hint="run the same command again")
        if code in EXPIRED:
            return DataError(f"{where}: the credentials expired ({words})", hint=self._key_place())
        if code == "InvalidObjectState":
            hint = f"aws s3api restore-object --bucket {shell_word(self.bucket)} --key {shell_word(key)}"
            return DataError(f"{where} is archived ({words})", hint=f"{hint} --restore-request Days=7")
        if status in (301, 307, 400) and code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
            region = error.get("Region") or metadata.get("HTTPHeaders", {}).get("x-amz-bucket-region", "REGION")
            return DataError(f"{where} is in another region ({words})", hint=f"region: {region} of the connection")
        if status in (401, 403) or code in ("InvalidAccessKeyId", "SignatureDoesNotMatch"):
            return DataError(f"{where} may not be read with these credentials ({words})", hint=self._key_place())
        return DataError(f"{where}: the store answered {words}", hint="mlkit explain RECIPE data.source")

    def _client_problem(self, error: Any) -> Exception:
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            message = f"there are no credentials for {self.where()}"
            return DataError(message, hint="aws configure, or a connection with access_key and secret")
        if isinstance(error, exceptions.ParamValidationError):
            return DataError(f"{self.where()}: {first_line(error)}", hint="mlkit explain RECIPE data.source.url")
        return TransientError(f"no answer: {first_line(error)}")

    def _key_place(self) -> str:
        if self.connection.access_key is None:
            return "aws sts get-caller-identity tells whose credentials these are"
        return "mlkit explain RECIPE connections shows where access_key and secret are kept"


class S3Stream:
    """The body of an object."""

    def __init__(self, body: Any, start: int) -> None:
        self._body, self.start = body, start

    def chunks(self, size: int) -> Iterator[bytes]:
        """The bytes. Raises TransientError."""
        import urllib3
        from botocore.exceptions import BotoCoreError

        try:
            while chunk := self._body.read(size):
                yield chunk
        except (BotoCoreError, urllib3.exceptions.HTTPError, OSError) as error:
            raise TransientError(f"the body was cut: {first_line(error)}") from None
