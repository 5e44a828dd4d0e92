"""Export a checkpoint to ONNX."""

from dataclasses import dataclass

from sketchray import command


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Export a checkpoint to one ONNX file, and check that it answers the same.

    Attributes:
        checkpoint: checkpoint, run (its best checkpoint is taken), or a URI of one.
        out: file to write; its name ends in .onnx.
        debug: show tracebacks.
    """

    checkpoint: str
    out: str
    debug: bool = False


def call(arguments: Arguments) -> dict[str, object]:
    """Exports."""
    from sketchray.exported import export

    return export(arguments.checkpoint, arguments.out)


if __name__ == "__main__":
    command.run(Arguments, call)
