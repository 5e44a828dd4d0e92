"""An S3 server of the test's own, which can be told to refuse: moto's, in a thread of this process."""

import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import pytest

from sketchray import storage

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class ObjectStore:
    """Serves S3 on loopback, empty at first.

    Attributes:
        refusing: whether requests are refused.
        status, code: with which they are.
        refused: how many were, about.
        client: boto3's.
    """

    def __init__(self) -> None:
        import boto3
        import httpx
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel("WARNING")  # a line for each request
        self.refusing, self.status, self.code, self.refused = False, "503 Slow Down", "SlowDown", 0
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self.address = ":".join(map(str, self._server.get_host_and_port()))
        url = f"http://{self.address}"
        httpx.post(f"{url}/moto-api/reset").raise_for_status()  # all servers of a process have one memory
        names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=url, **names)
        assert self._server._server is not None
        self._serve: Application = self._server._server.app
        self._server._server.app = self._answer

    def _answer(self, environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if not self.refusing:
            return self._serve(environment, start)
        self.refused += 1
        body = f"<Error><Code>{self.code}</Code><Message>as it was told</Message></Error>".encode()
        start(self.status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    def refuse_until_told(self, patch: pytest.MonkeyPatch) -> list[str]:
        """Refuses everything until the first warning that it does. Returns the warnings so far."""
        told = []

        def warning(message: str, *arguments: object) -> None:
            told.append(message % arguments)
            self.refusing = False

        patch.setattr(storage.logger, "warning", warning)
        self.refusing = True
        return told

    def make_bucket(self, name: str) -> str:
        """Returns the URI of something in a new bucket, with `{}` for its path."""
        self.client.create_bucket(Bucket=name)
        return f"s3://key:secret@{name}/{{}}?endpoint_override={self.address}&scheme=http"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop()
