"""What an operator sets: the model, its batches, and the limits of a request."""

from pydantic import BaseModel, ConfigDict, Field

from sketchray.predictor import Backend

PARSER_NESTING = 200  # The JSON parser itself goes no deeper. Source: jiter, pydantic's.


class Settings(BaseModel):
    """`args` of the application in `serve_config.yaml`.

    Attributes:
        checkpoint: the model: a checkpoint, a run (its best), an ONNX file, or a URI of one.
        backend: what runs it: `onnx`, for which a replica exports a checkpoint when it starts, or `torch`.
        max_batch_size: requests that the model answers together; it takes those that wait when it is free.
        max_body_bytes: a larger body, or line of a batch, is refused.
        max_batch_body_bytes: the same for the whole body of a batch.
        max_batch_drawings: a batch with more lines is refused.
        max_batches: batches that a replica works on at a time; it holds the body of each.
        max_strokes: a drawing with more strokes is refused.
        max_points: a drawing with more points is refused.
        max_nesting: lists and objects inside each other, in all of a record, ignored fields too.
        max_top_k: guesses that may be asked for; there are never more than classes.
        timeout_s: a request has this long to arrive whole and be answered.
        batch_timeout_s: the same for a batch; its lines that are not answered by then are given up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    backend: Backend = "onnx"
    max_batch_size: int = Field(32, ge=1)
    max_body_bytes: int = Field(1 << 20, ge=1)
    max_batch_body_bytes: int = Field(64 << 20, ge=1)
    max_batch_drawings: int = Field(250_000, ge=1)
    max_batches: int = Field(4, ge=1)
    max_strokes: int = Field(1_000, ge=1)
    max_points: int = Field(10_000, ge=1)
    max_nesting: int = Field(100, ge=4, le=PARSER_NESTING)
    max_top_k: int = Field(1_000, ge=1)
    timeout_s: float = Field(10.0, gt=0)
    batch_timeout_s: float = Field(300.0, gt=0)

    def limits(self) -> dict[str, int | float]:
        """Returns what bounds a request, as `GET /v1/model` tells it."""
        of_requests = set(Settings.model_fields) - {"checkpoint", "backend", "max_batch_size"}
        return self.model_dump(include=of_requests)
