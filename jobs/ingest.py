"""Turn a source of drawings into shuffled Arrow shards."""

from dataclasses import dataclass

from sketchray import command
from sketchray.sources import Format, open_source
from sketchray.strokes import MAX_POINTS


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn a source of drawings into shuffled Arrow shards, with Ray Data.

    Attributes:
        out: directory or URI to write; it must not exist, or be empty. An ingest that was killed goes on there when it
            is run again with the same flags.
        source: file, directory, glob pattern, or URI of one; `quickdraw` is Google's bucket; not used by
            `--format doodles`.
        format: of the files; `auto` looks at their first bytes, `doodles` are generated.
        classes: only these, separated by commas; all if not given.
        per_class: at most so many of each class, the first ones; of doodles so many are drawn (500 if not given).
        max_points: a record with more points is no drawing.
        seed: of the shuffle and of the doodles.
        num_shards: files to write; one for each 32,768 drawings if not given.
        strict: stop at the first bad record, and write nothing; else it is counted, and goes to quarantine.ndjson.
        cache_dir: for files that come by HTTP; ~/.cache/sketchray if not given. Every node must see it.
        debug: show tracebacks and Ray's own log.
    """

    out: str
    source: str | None = None
    format: Format = "auto"
    classes: str | None = None
    per_class: int | None = None
    max_points: int = MAX_POINTS
    seed: int = 0
    num_shards: int | None = None
    strict: bool = False
    cache_dir: str | None = None
    debug: bool = False


def call(arguments: Arguments) -> dict[str, object]:
    """Ingests."""
    from sketchray.ingest import ingest

    classes = [name.strip() for name in arguments.classes.split(",")] if arguments.classes is not None else None
    source = open_source(
        arguments.source,
        arguments.format,
        classes=classes,
        per_class=arguments.per_class,
        max_points=arguments.max_points,
        seed=arguments.seed,
        cache_dir=arguments.cache_dir,
    )
    return ingest(source, arguments.out, seed=arguments.seed, num_shards=arguments.num_shards, strict=arguments.strict)


if __name__ == "__main__":
    command.run(Arguments, call)
