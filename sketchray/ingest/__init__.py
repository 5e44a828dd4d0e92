"""Ingest: a source of drawings to shuffled shards, with Ray Data, out of core.

Files hold one class each; the shards mix all classes. Each drawing gets a place by a hash of (seed, class, points). One
pass over the source sorts groups of files by place into runs on disk; a second merges the runs, one range of places a
shard. So the shuffle is global, depends on neither the order of the input nor the number of CPUs, and needs the memory
of one run or one shard a CPU. Equal drawings of a class meet, and one of them is written.

What is done is on disk at any moment: an ingest that was killed goes on where it was when it is run again.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from sketchray import card, census
from sketchray.cluster import check_shared, connect
from sketchray.errors import DataError, find_error
from sketchray.formats import HostileError
from sketchray.ingest.reading import EXAMPLES, RUN_ROWS, GroupReport, Reader, RefusedError, run_name
from sketchray.ingest.stage import CARD, QUARANTINE, Stage
from sketchray.ingest.writing import ShardReport, Writer, choose_cuts
from sketchray.shards import MANIFEST, SPLITS, File, Manifest, RowGroup, make_schema
from sketchray.sources import Source
from sketchray.storage import absolute

logger = logging.getLogger(__name__)

GROUP_BYTES = 8 << 20  # of small files that are read and reported as done together; a larger one stands alone
DRAWING_BYTES = 300  # about what a doodle would take in a file
AT_ONCE = 4  # groups or shards a task, if there are many: between two tasks Ray Data takes some 50 ms
MAX_CLASSES = 32_767  # labels are int16
ROWS_PER_SHARD = 32_768  # about 9 MB


def ingest(
    source: Source, out: str, *, seed: int = 0, num_shards: int | None = None, strict: bool = False
) -> dict[str, Any]:
    """Writes a source as shuffled shards, a data card and a manifest, on the Ray cluster that is connected.

    Records that are no drawings go to `quarantine.ndjson` in the output. An ingest that was killed, or that a full disk
    or a failing network ended, goes on from what it had done when it is called again with the same arguments.

    Args:
        source: from `sketchray.sources.open_source`.
        out: a directory or URI that does not exist yet, or is empty, or holds the start of the same ingest.
        seed: of the shuffle; the same source and seed give the same bytes.
        num_shards: files to write; by default one for each 32,768 drawings.
        strict: whether the first bad record ends the ingest.

    Returns:
        The job's JSON: `out`, `drawings`, `classes`, `splits`, `duplicates`, `quarantined`, `drawings_per_s`.

    Raises:
        DataError: the source is not accepted, and nothing is left in `out`; or `out` is in use.
        RunError, StorageError: a node does not see the same; or it had to stop, and what is complete stays.
    """
    if num_shards is not None and num_shards < 1:
        raise DataError(f"--num-shards {num_shards}: must be at least 1")
    stage = Stage(absolute(out))
    stage.check()
    fetched = {"--cache-dir": source.cache_dir} if source.is_web else {}
    check_shared({"--source": source.local}, {"--out": stage.out, **fetched})
    source = source.fetched()
    if stage.open(plan_of(source, seed=seed, num_shards=num_shards, strict=strict)):
        logger.info("going on with an ingest that was not finished")
    try:
        return _ingest(source, stage, seed, num_shards, strict)
    except BaseException as error:
        try:
            refused = isinstance(find_error(error), RefusedError | HostileError) or not stage.reports("group")
        except OSError:  # the storage refuses, perhaps that was it; so what is there stays
            refused = False
        if refused:
            stage.remove()
        else:
            logger.info("what is complete stays in %s: run the same command again to go on", stage.out)
        raise


def plan_of(source: Source, *, seed: int, num_shards: int | None, strict: bool) -> Any:
    """Returns what must be the same for an ingest to go on where another was stopped."""
    flags = {"seed": seed, "num_shards": num_shards, "strict": strict}
    return json.loads(json.dumps({**asdict(source), **flags, "group_bytes": GROUP_BYTES, "run_rows": RUN_ROWS}))


def _ingest(source: Source, stage: Stage, seed: int, num_shards: int | None, strict: bool) -> dict[str, Any]:
    started = time.perf_counter()
    groups = _group(source)
    read = _run("read", len(groups), "group", stage, Reader(source, stage, groups, seed, strict))
    done = stage.use(lambda: stage.reports("group"))
    reports = [GroupReport.model_validate(stage.read_json(name)) for name in done]
    counts: Counter[str] = Counter()
    for report in reports:
        for of_part in report.class_counts.values():
            counts.update(of_part)
    classes = sorted(counts)
    missing = sorted(set(source.classes or ()) - set(classes))
    if missing and classes:
        raise RefusedError(
            f"--classes {missing[0]!r}: no drawing of this class in the source; it has {_shown(classes)}"
        )
    if not classes:
        first = next((f": {bad['reason']} ({bad['source']}:{bad['line']})" for r in reports for bad in r.examples), "")
        raise RefusedError(f"{source.parts[0].uri}: no drawing in the source{first}")

    if len(classes) > MAX_CLASSES:
        raise RefusedError(
            f"{source.parts[0].uri}: {len(classes):,} classes ({_shown(classes)}), at most {MAX_CLASSES:,}; "
            "choose some with --classes, or name the files after their classes"
        )
    num_shards = num_shards or -(-sum(sum(report.runs) for report in reports) // ROWS_PER_SHARD)
    runs = [run_name(group, number) for group, report in enumerate(reports) for number in range(len(report.runs))]
    provenance = {**source.provenance(classes), "seed": seed, "num_shards": num_shards}
    schema = make_schema(classes, provenance)
    cuts = choose_cuts(source.per_class, reports)
    writer = Writer(stage, runs, schema, classes=classes, num_shards=num_shards, cuts=cuts)
    _run("wrote", num_shards, "shard", stage, writer)
    manifest = _finish(stage, reports, classes, provenance)
    if "attribution" in provenance:
        logger.info(provenance["attribution"])
    return {
        "out": stage.out,
        "drawings": sum(manifest.splits.values()),
        "classes": len(classes),
        "splits": manifest.splits,
        "duplicates": manifest.duplicates,
        "quarantined": manifest.quarantined,
        "drawings_per_s": round(read / (time.perf_counter() - started)),
    }


def _run(verb: str, number: int, kind: str, stage: Stage, task: Callable[[int], int]) -> int:
    """Runs the tasks 0..number - 1 that are not reported as done, with Ray Data; returns their number of drawings."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    reports = stage.use(lambda: stage.reports(kind))
    done = {int(name.removeprefix(f"{kind}-").removesuffix(".json")) for name in reports}
    pending = [index for index in range(number) if index not in done]
    if not pending:
        return 0

    def call(rows: pa.Table) -> Iterator[pa.Table]:
        for index in rows["id"].to_pylist():
            yield pa.table({"drawings": [task(pending[index])]})

    num_cpus = int(connect().cpus)
    num_tasks = min(len(pending), max(len(pending) // AT_ONCE, 4 * num_cpus))
    tasks = ray.data.range(len(pending), override_num_blocks=num_tasks)
    started, drawings = time.perf_counter(), 0
    for finished, row in enumerate(
        tasks.map_batches(call, batch_size=None, batch_format="pyarrow").iter_rows(), number - len(pending) + 1
    ):
        drawings += row["drawings"]
        rate = drawings / (time.perf_counter() - started)
        logger.info("%s %d of %d %ss, %s drawings, %s/s", verb, finished, number, kind, f"{drawings:,}", f"{rate:,.0f}")
    return drawings


def _group(source: Source) -> list[list[int]]:
    """Returns the parts in groups of some size. They do not depend on the cluster."""
    groups: list[list[int]] = []
    size = GROUP_BYTES
    for number, part in enumerate(source.parts):
        num_bytes = part.num_bytes or part.number * DRAWING_BYTES or GROUP_BYTES
        if size + num_bytes > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(number)
        size += num_bytes
    return groups


def _finish(
    stage: Stage, reports: Sequence[GroupReport], classes: list[str], provenance: dict[str, str | int | bool]
) -> Manifest:
    """Writes what describes the shards, the manifest last, and returns it."""
    names = stage.use(lambda: stage.reports("shard"))
    shards = (ShardReport.model_validate(stage.read_json(name)) for name in names)
    groups: list[RowGroup] = []
    files: dict[str, File] = {}
    duplicates = sum(report.duplicates for report in reports)
    statistics = census.Statistics.empty(classes)
    for shard in shards:  # one at a time: there may be thousands
        groups += shard.groups
        files[shard.name] = shard.file
        duplicates += shard.duplicates
        statistics = census.merge([statistics, shard.statistics])
    splits = Counter(dict.fromkeys(SPLITS, 0))
    for group in groups:
        splits[group.split] += group.rows
    bad: Counter[str] = Counter()
    for report in reports:
        bad.update(report.bad)
    manifest = Manifest(
        classes=classes,
        splits=dict(splits),
        class_counts=statistics.class_counts,
        duplicates=duplicates,
        quarantined=bad.total(),
        files=files,
        row_groups=groups,
        provenance=provenance,
    )
    if bad:
        stage.join("bad", QUARANTINE)
    examples = [record for report in reports for record in report.examples][:EXAMPLES]
    page = card.render(
        statistics, classes=classes, provenance=provenance, duplicates=duplicates, quarantine=bad, examples=examples
    )
    stage.write(CARD, page.encode())
    stage.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
    stage.finish()
    return manifest


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")
