"""An S3 server of its own, for tests: moto's, in this process; what is in it lasts as long as the process."""

from __future__ import annotations

import itertools
import socket
from datetime import timedelta

import boto3
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer


class OwnS3:
    """Its address and credentials belong into the environment: `environment`."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._numbers = itertools.count()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        }  # fmt: skip
        self.start()

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def new_bucket(self, prefix: str = "") -> str:
        """Its URL. The environment must be set."""
        name = f"parts-{next(self._numbers)}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}/{prefix}" if prefix else f"s3://{name}"

    def overwrite(self, url: str, data: bytes) -> None:
        """As somebody who can reach the bucket."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=data)

    def age(self, url: str, seconds: float) -> None:
        """As time does: whatever is in the bucket was written so much earlier."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        for kept in s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys.values():
            kept.last_modified -= timedelta(seconds=seconds)

    def rot(self, url: str, data: bytes) -> None:
        """As a disk does: other bytes under the checksum of the former."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[bucket].keys[key].value = data
