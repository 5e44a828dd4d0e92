"""An S3 server that can be told to refuse: moto's, which answers 503 while a file exists.

python benchmarks/flaky_s3.py FILE ADDRESS PORT
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple

ANSWER = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


def main() -> None:
    """Serves until it is killed."""
    file, address, port = sys.argv[1:]
    serve = DomainDispatcherApplication(create_backend_app)

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if not Path(file).exists():
            return serve(environment, start)  # type: ignore[no-any-return, no-untyped-call]
        start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(ANSWER)))])
        return [ANSWER]

    run_simple(address, int(port), answer, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
