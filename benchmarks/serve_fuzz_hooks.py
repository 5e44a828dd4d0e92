"""What schemathesis does not know of itself: bodies of batches. benchmarks/serve_fuzz.py names this module to it."""

from typing import Any

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def serialize(context: Any, value: Any) -> Any:
    """Returns a body as bytes."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
