"""Photos in a bucket of an object store with the protocol of S3.

Address, region and credentials of the store are the library's own affair (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, a role
of the machine, ...). The store checks the sha256 of what arrives, `get` that of what comes back.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from io import BufferedIOBase, BufferedReader, BytesIO
from typing import Any

from refdiff.memory.photos.image_store import ImageStore, check_sha256, is_sha256
from refdiff.model.errors import UnavailableError, UnknownRecordError

_CONNECT_S, _READ_S = 10, 60
_TRIES = 4
_CONNECTIONS = 16
_ABSENT = {"404", "NoSuchKey", "NotFound"}


class BucketImages(ImageStore):
    """Objects `<prefix>images/<first two digits>/<sha256>`; `<prefix>used/<sha256>` says when one was marked as used."""

    def __init__(self, url: str) -> None:
        """url: s3://bucket/prefix. Asks nothing of the store yet. Raises UnavailableError (no library, wrong settings)."""
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as e:
            raise UnavailableError("photos in an object store need: pip install 'refdiff[s3]'") from e
        self._refused, self._failed = ClientError, BotoCoreError
        self.url = url.rstrip("/")
        self._bucket, _, prefix = self.url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix}/" if prefix else ""
        config = Config(
            connect_timeout=_CONNECT_S, read_timeout=_READ_S, max_pool_connections=_CONNECTIONS,
            retries={"mode": "standard", "max_attempts": _TRIES},
        )  # fmt: skip
        try:
            self._client: Any = boto3.client("s3", config=config)
        except (BotoCoreError, ValueError) as e:
            raise UnavailableError(f"the object store of {self.url}: {e}") from e

    def where(self, sha256: str) -> str:
        return f"s3://{self._bucket}/{self._key(sha256)}"

    def ids(self) -> Iterator[str]:
        yield from self.sizes()

    def sizes(self) -> dict[str, int]:
        """Id -> bytes of all photos."""
        found = {}
        with self._errors():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}images/"
            )
            for page in pages:
                for one in page.get("Contents", ()):
                    if is_sha256(sha256 := one["Key"].rpartition("/")[2]):
                        found[sha256] = int(one["Size"])
        return found

    def put(self, data: bytes) -> str:
        return self.put_file(BytesIO(data))

    def put_file(self, file: BufferedIOBase) -> str:
        """As `put`, with all that is in a file that can be read again."""
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        sha256, checksum = digest.hexdigest(), base64.b64encode(digest.digest()).decode()
        about = self._about(self._key(sha256))
        # one with another checksum, or none, may be damaged: writing it anew repairs it
        if about is None or about.get("ChecksumSHA256") != checksum or not self.mark_used(sha256):
            file.seek(0)
            with self._errors():
                self._client.put_object(Bucket=self._bucket, Key=self._key(sha256), Body=file, ChecksumSHA256=checksum)
        return sha256

    @contextlib.contextmanager
    def opened(self, sha256: str) -> Iterator[BufferedIOBase]:
        try:
            with self._errors():
                found = self._client.get_object(Bucket=self._bucket, Key=self._key(sha256))["Body"]
        except _AbsentError as e:
            raise UnknownRecordError(f"image {sha256[:12]}... is not in {self.url}; send the photo again") from e
        with BufferedReader(found) as file, self._errors():
            yield file

    def size(self, sha256: str) -> int | None:
        about = self._about(self._key(sha256))
        return None if about is None else int(about["ContentLength"])

    def used_at(self, sha256: str) -> float | None:
        about = self._about(self._key(sha256))
        return None if about is None else max(_time(about), _time(self._about(self._mark(sha256))))

    def mark_used(self, sha256: str) -> bool:
        with self._errors():
            # first: who removes it looks for this last
            self._client.put_object(Bucket=self._bucket, Key=self._mark(sha256), Body=b"")
        return self._about(self._key(sha256)) is not None

    def remove_unused(self, sha256: str, since: float) -> int | None:
        used_at = self.used_at(sha256)
        if used_at is None:
            return 0
        if used_at >= since:
            return None
        with tempfile.TemporaryFile() as kept:
            try:
                with self.opened(sha256) as found:
                    shutil.copyfileobj(found, kept)
            except UnknownRecordError:  # another process removes it, too
                return 0
            self._delete(self._key(sha256))
            if _time(self._about(self._mark(sha256))) >= since:  # marked just before: whoever did so relies on it
                self.put_file(kept)
                return None
            self._delete(self._mark(sha256))
            return kept.tell()

    def _delete(self, key: str) -> None:
        with self._errors():
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def _about(self, key: str) -> dict[str, Any] | None:
        try:
            with self._errors():
                return dict(self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED"))
        except _AbsentError:
            return None

    def _key(self, sha256: str) -> str:
        return f"{self._prefix}images/{check_sha256(sha256)[:2]}/{sha256}"

    def _mark(self, sha256: str) -> str:
        return f"{self._prefix}used/{check_sha256(sha256)}"

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._refused as e:
            code = str(e.response.get("Error", {}).get("Code", ""))
            if code in _ABSENT:
                raise _AbsentError from e
            raise UnavailableError(
                f"the object store refuses {self.url} ({code}); does the bucket exist, and may these credentials read, "
                "write, list and delete in it?"
            ) from e
        except self._failed as e:
            raise UnavailableError(
                f"the object store of {self.url} does not answer ({type(e).__name__}); is it running, and are "
                "AWS_ENDPOINT_URL and the credentials right?"
            ) from e


class _AbsentError(Exception):
    """There is no such object."""


def _time(about: dict[str, Any] | None) -> float:
    """When an object was written (s, Unix); 0.0 for none."""
    return 0.0 if about is None else float(about["LastModified"].timestamp())
