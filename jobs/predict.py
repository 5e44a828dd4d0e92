"""Classify the drawings of a source."""

from dataclasses import dataclass

from sketchray import command
from sketchray.sources import Format, open_source


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Classify the drawings of a source with Ray Data; Parquet out.

    Attributes:
        checkpoint: checkpoint, run (its best checkpoint is taken), ONNX file, or a URI of one.
        source: file, directory, glob pattern or URI of one; not used by `--format doodles`.
        format: of the files; `auto` looks at their first bytes.
        out: directory or URI to write; it must not exist.
        debug: show tracebacks and Ray's own log.
    """

    checkpoint: str
    out: str
    source: str | None = None
    format: Format = "auto"
    debug: bool = False


def call(arguments: Arguments) -> dict[str, object]:
    """Predicts."""
    from sketchray.evaluation import predict

    return predict(arguments.checkpoint, open_source(arguments.source, arguments.format), arguments.out)


if __name__ == "__main__":
    command.run(Arguments, call)
