"""Evaluate a checkpoint on a split of a data set."""

from dataclasses import dataclass
from typing import Literal

from sketchray import command


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Evaluate a checkpoint on a split of a data set, with Ray Data.

    Attributes:
        checkpoint: checkpoint, run (its best checkpoint is taken), ONNX file, or a URI of one.
        data: directory or URI that jobs/ingest.py wrote.
        split: which drawings.
        report: directory to write an HTML report into.
        debug: show tracebacks and Ray's own log.
    """

    checkpoint: str
    data: str
    split: Literal["train", "valid", "test", "all"] = "test"
    report: str | None = None
    debug: bool = False


def call(arguments: Arguments) -> dict[str, object]:
    """Evaluates."""
    from sketchray.evaluation import evaluate

    evaluation = evaluate(arguments.checkpoint, arguments.data, split=arguments.split)
    if arguments.report is not None:
        from sketchray.report import write_report

        write_report(arguments.report, evaluation)
    return evaluation.result


if __name__ == "__main__":
    command.run(Arguments, call)
