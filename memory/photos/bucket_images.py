"""Photos in a bucket of an object store with the protocol of S3.

Address, region and credentials of the store are the library's own affair (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, a role
of the machine, ...). The store checks the sha256 of what arrives, `get` that of what comes back.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from io import BufferedIOBase, BufferedReader, BytesIO
from typing import Any

from refdiff.memory.photos.image_store import ImageStore, check_sha256, is_sha256
from refdiff.model.errors import UnavailableError, UnknownRecordError

_CONNECT_S, _READ_S = 10, 60
_TRIES = 4
_CONNECTIONS = 16
_ABSENT = {"404", "NoSuchKey", "NotFound"}
_DENIED, _TOO_MANY, _FAILED = (401, 403), 429, 500


class BucketImages(ImageStore):
    """Objects `<prefix>images/<first two digits>/<sha256>`, and what keeps two processes from losing one.

    `<prefix>used/<sha256>-<random>` is written whenever a photo is marked as used. Each is a new object: who removes those
    that are old cannot remove one that was just written. Only the newest of a photo counts; `put_back` removes older ones.
    `<prefix>removing/<sha256>-<random>` is the copy of a photo that is being removed; one that is left belongs to a process
    that was killed.
    """

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
            response_checksum_validation="when_required",  # `get` and `check` compare; `opened` gives damaged ones, too
        )  # fmt: skip
        try:
            self._client: Any = boto3.client("s3", config=config)
        except (BotoCoreError, ValueError) as e:
            raise UnavailableError(f"the object store of {self.url}: {e}") from e

    def ask(self) -> None:
        """Raises UnavailableError where there is no such bucket, or it cannot be listed."""
        with self._errors():
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1)

    def where(self, sha256: str) -> str:
        return f"s3://{self._bucket}/{self._key(sha256)}"

    def ids(self) -> Iterator[str]:
        yield from (s for one in self._listed("images/") if is_sha256(s := one["Key"].rpartition("/")[2]))

    def put(self, data: bytes) -> str:
        return self.put_file(BytesIO(data))

    def put_file(self, file: BufferedIOBase) -> str:
        """As `put`, with all that is in a file that can be read again."""
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")
        sha256, checksum = digest.hexdigest(), base64.b64encode(digest.digest()).decode()
        self._mark(sha256)  # first, whatever is there: who removes it looks for this last
        about = self._about(self._key(sha256))
        # one with another checksum, or none, may be damaged: writing it anew repairs it
        if about is None or about.get("ChecksumSHA256") != checksum:
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
        return None if about is None else max(_time(about), self._marked_at(sha256))

    def mark_used(self, sha256: str) -> bool:
        self._mark(sha256)
        return self._about(self._key(sha256)) is not None

    def remove_unused(self, sha256: str, since: float) -> int | None:
        key = self._key(sha256)
        about = self._about(key)
        if about is None:
            return 0
        if max(_time(about), self._marked_at(sha256)) >= since:
            return None
        copy = f"{self._prefix}removing/{sha256}-{secrets.token_hex(8)}"
        try:
            self._copy(key, copy)
        except _AbsentError:  # another process removes it, too
            return 0
        used_at = self.used_at(sha256)  # again: it may have been written anew since
        if used_at is None or used_at >= since:
            self._delete(copy)
            return 0 if used_at is None else None
        self._delete(key)
        if self._marked_at(sha256) >= since:  # marked just before: whoever did so relies on it
            self._copy(copy, key)
            self._delete(copy)
            return None
        for mark in self._marks(sha256):
            if _time(mark) < since:
                self._delete(mark["Key"])
        self._delete(copy)
        return int(about["ContentLength"])

    def put_back(self, since: float) -> int:
        put_back = 0
        for copy in self._listed("removing/"):
            sha256 = copy["Key"].rpartition("/")[2].partition("-")[0]
            if not is_sha256(sha256):
                continue
            with contextlib.suppress(_AbsentError):  # its process lives, and is done with it
                if self._about(self._key(sha256)) is None:
                    self._copy(copy["Key"], self._key(sha256))
                    put_back += 1
            if _time(copy) < since:  # else its process may still need it
                self._delete(copy["Key"])
        self._forget_marks(since)
        return put_back

    def _forget_marks(self, since: float) -> None:
        """Delete the marks older than `since` that no removal needs: all but the newest of each photo, and those of absent
        photos. A removal that began earlier still finds when a photo was used last."""
        kept, old = {*self.ids()}, list[str]()
        marks = itertools.groupby(self._listed("used/"), lambda one: one["Key"].rpartition("/")[2].partition("-")[0])
        for sha256, of_photo in marks:  # in the order of their names, so those of a photo come together
            older = sorted(of_photo, key=_time)
            older = older[:-1] if sha256 in kept else older
            old += [one["Key"] for one in older if is_sha256(sha256) and _time(one) < since]
        with ThreadPoolExecutor(_CONNECTIONS) as threads:
            for _ in threads.map(self._delete, old):
                pass

    def _copy(self, source: str, target: str) -> None:
        """Within the store. Raises _AbsentError."""
        with self._errors():
            self._client.copy_object(
                Bucket=self._bucket, Key=target, CopySource={"Bucket": self._bucket, "Key": source},
                ChecksumAlgorithm="SHA256",
            )  # fmt: skip

    def _delete(self, key: str) -> None:
        with contextlib.suppress(_AbsentError), self._errors():  # some stores say so
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def _about(self, key: str) -> dict[str, Any] | None:
        try:
            with self._errors():
                return dict(self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED"))
        except _AbsentError:
            return None

    def _listed(self, below: str) -> Iterator[dict[str, Any]]:
        """Key, Size and LastModified of all objects whose key begins so, after the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{below}"
        )
        with self._errors():
            for page in pages:
                yield from page.get("Contents", ())

    def _key(self, sha256: str) -> str:
        return f"{self._prefix}images/{check_sha256(sha256)[:2]}/{sha256}"

    def _mark(self, sha256: str) -> None:
        key = f"{self._prefix}used/{check_sha256(sha256)}-{secrets.token_hex(8)}"
        with self._errors():
            self._client.put_object(Bucket=self._bucket, Key=key, Body=b"")

    def _marks(self, sha256: str) -> list[dict[str, Any]]:
        return list(self._listed(f"used/{check_sha256(sha256)}"))

    def _marked_at(self, sha256: str) -> float:
        """When it was last marked as used (s, Unix); 0.0 if never."""
        return max(map(_time, self._marks(sha256)), default=0.0)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._refused as e:
            raise self._refusal(e.response) from e
        except self._failed as e:
            raise UnavailableError(
                f"the object store of {self.url} does not answer ({type(e).__name__}); is it running, and are "
                "AWS_ENDPOINT_URL and the credentials right?"
            ) from e

    def _refusal(self, response: Mapping[str, Any]) -> UnavailableError:
        error = response.get("Error", {})
        code, status = str(error.get("Code", "")), int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        said = f"{status} {code}" if code != str(status) else code
        if code in _ABSENT:
            return _AbsentError(f"the object store has no such object in {self.url} ({said}); does the bucket exist?")
        if status in _DENIED:
            return UnavailableError(
                f"the object store refuses {self.url} ({said}); may these credentials read, write, list and delete in it?"
            )
        if status == _TOO_MANY or status >= _FAILED:
            return UnavailableError(
                f"the object store of {self.url} fails ({said}); try again later, and look at its own log if that lasts"
            )
        why = f": {error['Message']}" if error.get("Message") else ""
        return UnavailableError(
            f"the object store does not take a request for {self.url} ({said}{why}); does the bucket exist, and is "
            "AWS_ENDPOINT_URL the address of a store with the protocol of S3?"
        )


class _AbsentError(UnavailableError):
    """There is no such object."""


def _time(about: Mapping[str, Any]) -> float:
    """When an object was written (s, Unix)."""
    return float(about["LastModified"].timestamp())
