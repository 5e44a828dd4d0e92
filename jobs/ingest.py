"""Turn a source of drawings into shuffled Arrow shards."""

from dataclasses import dataclass

from sketchray import command
from sketchray.sources import Format, open_source


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn a source of drawings into shuffled Arrow shards, with Ray Data.

    Attributes:
        out: directory or URI to write; it must not exist, or be empty.
        source: file, directory or glob of ndjson files; not used by `--format doodles`.
        format: what the source holds; `auto` looks at its first record, `doodles` are generated.
        classes: only these, separated by commas; all if not given.
        per_class: at most so many of each class in each file; of doodles so many are drawn (500 if not given).
        seed: of the shuffle and of the doodles.
        num_shards: files to write; one for each 32,768 drawings if not given.
        debug: show tracebacks and Ray's own log.
    """

    out: str
    source: str | None = None
    format: Format = "auto"
    classes: str | None = None
    per_class: int | None = None
    seed: int = 0
    num_shards: int | None = None
    debug: bool = False


def call(arguments: Arguments) -> dict[str, object]:
    """Ingests."""
    from sketchray.ingest import ingest

    classes = [name.strip() for name in arguments.classes.split(",")] if arguments.classes is not None else None
    source = open_source(
        arguments.source, arguments.format, classes=classes, per_class=arguments.per_class, seed=arguments.seed
    )
    return ingest(source, arguments.out, seed=arguments.seed, num_shards=arguments.num_shards)


if __name__ == "__main__":
    command.run(Arguments, call)
