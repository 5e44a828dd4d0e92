"""Ingest: a source of drawings to shuffled shards, with Ray Data.

Files hold one class each; the shards mix all classes. Each drawing gets a place by a hash of (seed, class, points), and
Ray Data sorts by that place, out of core: a global shuffle that depends on neither the order of the input nor the
number of CPUs. Equal drawings of a class meet, and one of them is written.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import BaseModel

from sketchray.cluster import connect
from sketchray.columns import Int16Array, IntArray, from_column
from sketchray.errors import DataError
from sketchray.shards import MANIFEST, ROW_GROUP, SPLITS, Manifest, RowGroup, make_schema
from sketchray.sources import ATTRIBUTION, Source
from sketchray.storage import absolute, open_filesystem

logger = logging.getLogger(__name__)

READ_TASKS = 256  # a task has a cost, and a small file is not worth one
ROWS_PER_SHARD = 32_768  # about 9 MB
PLACES = 1 << 62  # places in the shuffle, 0..PLACES - 1
TRAIN_SHARE, VALID_SHARE = 0.8, 0.1  # of the drawings whose split is not published

UInt64Array = npt.NDArray[np.uint64]


def mix(values: UInt64Array | int) -> UInt64Array:
    """Returns 64-bit hashes of 64-bit numbers. Source: SplitMix64, Steele, Lea and Flood 2014."""
    with np.errstate(over="ignore"):
        mixed = np.asarray(values, np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def content_hash(names: Sequence[str], points: Int16Array, offsets: IntArray) -> UInt64Array:
    """Returns a `(B,)` hash of each drawing's class and points; `names` has the class of each drawing."""
    position = np.arange(len(points)) - np.repeat(offsets[:-1], np.diff(offsets))
    packed = points.astype(np.uint16).astype(np.uint64) << np.array([0, 16, 32], np.uint64)
    with np.errstate(over="ignore"):
        sums = np.add.reduceat(mix(packed.sum(1, dtype=np.uint64) ^ mix(position.astype(np.uint64))), offsets[:-1])
    unique, inverse = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    of_name = [int.from_bytes(blake2b(str(name).encode(), digest_size=8).digest(), "little") for name in unique]
    return mix(sums ^ np.array(of_name, np.uint64)[inverse])


def choose_split(keys: UInt64Array) -> npt.NDArray[np.object_]:
    """Returns `train`, `valid` or `test` for each key: 80, 10 and 10 %, the same for a key wherever it stands."""
    share = mix(keys) / np.float64(2**64)
    return np.where(share < TRAIN_SHARE, "train", np.where(share < TRAIN_SHARE + VALID_SHARE, "valid", "test"))


class _Parse:
    """Reads parts of a source and adds what the shuffle and the split need: `place` and `split_key`."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __call__(self, numbers: pa.Table) -> Iterator[pa.Table]:
        for part in numbers["id"].to_pylist():
            for table in self.source.read(part):
                points, offsets = from_column(table["points"])
                content = content_hash(table["class"].to_numpy(zero_copy_only=False), points, offsets)
                place = (mix(content ^ mix(self.seed)) >> np.uint64(2)).astype(np.int64)
                # A drawing without a key is its own key.
                key = pc.coalesce(table["key_id"], pa.array(content))
                yield table.append_column("place", pa.array(place)).append_column("split_key", key)


class _Write:
    """Writes one shard from the drawings of its range of places, and returns what the manifest needs to know of it."""

    def __init__(self, out: str, schema: pa.Schema, classes: Sequence[str], num_shards: int) -> None:
        self.out, self.schema, self.classes, self.num_shards = out, schema, classes, num_shards

    def __call__(self, table: pa.Table) -> pa.Table:
        if not len(table):
            return pa.table({"shard": pa.array([], pa.string()), "report": pa.array([], pa.string())})
        place = table["place"].to_numpy()
        key = table["split_key"].to_numpy()
        table = table.take(pa.array(np.lexsort((key, place))))
        unique = _first_of_equals(table)
        duplicates = len(table) - len(unique)
        table = table.take(pa.array(unique))
        split = choose_split(table["split_key"].to_numpy())
        label = pc.index_in(table["class"], pa.array(self.classes, pa.string())).cast(pa.int16())
        columns = [table["points"], label, table["key_id"], table["recognized"], pa.array(split, pa.string())]
        table = pa.table(columns, names=self.schema.names).cast(self.schema)

        number = int(place[0]) * self.num_shards // PLACES
        name = f"shard-{number:05d}-of-{self.num_shards:05d}.parquet"
        filesystem, path = open_filesystem(self.out)
        groups: list[RowGroup] = []
        with (
            filesystem.open_output_stream(f"{path}/{name}") as stream,
            pq.ParquetWriter(stream, self.schema, compression="zstd", use_dictionary=["split", "label"]) as writer,
        ):
            for name_of_split in SPLITS:
                rows = table.filter(pa.array(split == name_of_split))
                for start in range(0, len(rows), ROW_GROUP):
                    piece = rows.slice(start, ROW_GROUP)
                    writer.write_table(piece, row_group_size=ROW_GROUP)
                    groups.append(RowGroup(shard=name, index=len(groups), split=name_of_split, rows=len(piece)))
        counts = np.bincount(table["label"].to_numpy(), minlength=len(self.classes))
        report = _ShardReport(groups=groups, duplicates=duplicates, class_counts=counts.tolist())
        return pa.table({"shard": [name], "report": [report.model_dump_json()]})


class _ShardReport(BaseModel):
    groups: list[RowGroup]
    duplicates: int
    class_counts: list[int]


def _first_of_equals(table: pa.Table) -> IntArray:
    """Returns the rows that remain when, of equal drawings of a class, only the first is kept."""
    place = table["place"].to_numpy()
    again = np.flatnonzero(place[1:] == place[:-1]) + 1  # few: equal hashes stand side by side
    drop = []
    for row in again.tolist():
        first = int(np.searchsorted(place, place[row]))
        kept = [earlier for earlier in range(first, row) if earlier not in drop]
        if any(
            table["class"][earlier] == table["class"][row] and table["points"][earlier] == table["points"][row]
            for earlier in kept
        ):
            drop.append(row)
    return np.delete(np.arange(len(table)), drop)


def ingest(source: Source, out: str, *, seed: int = 0, num_shards: int | None = None) -> dict[str, Any]:
    """Writes a source as shuffled shards and a manifest, on the Ray cluster that is connected.

    Args:
        source: from `sketchray.sources.open_source`.
        out: a directory or URI that does not exist yet, or is empty.
        seed: of the shuffle; the same source and seed give the same bytes.
        num_shards: files to write; by default one for each 32,768 drawings.

    Returns:
        The job's JSON: `out`, `drawings`, `classes`, `splits`, `duplicates`, `quarantined`, `drawings_per_s`.

    Raises:
        DataError: the source has a bad record, or `out` is in use. Nothing is left in `out`.
    """
    if num_shards is not None and num_shards < 1:
        raise DataError(f"--num-shards {num_shards}: must be at least 1")
    out = absolute(out)
    existed = _prepare(out)
    try:
        return _ingest(source, out, seed, num_shards)
    except BaseException:
        _remove(out, existed)
        raise


def _ingest(source: Source, out: str, seed: int, num_shards: int | None) -> dict[str, Any]:
    import ray.data

    started = time.perf_counter()
    connect()
    ray.data.DataContext.get_current().enable_progress_bars = False
    parts = len(source.parts)
    logger.info("reading %d parts", parts)
    parsed = ray.data.range(parts, override_num_blocks=min(parts, READ_TASKS))
    parsed = parsed.map_batches(_Parse(source, seed), batch_size=None, batch_format="pyarrow").materialize()
    read = parsed.count()
    logger.info("read %s drawings in %.1f s", f"{read:,}", time.perf_counter() - started)
    if not read:
        raise DataError(f"{source.parts[0]}: no drawing of the classes asked for ({', '.join(source.classes or ())})")
    names = parsed.map_batches(_distinct_classes, batch_size=None, batch_format="pyarrow").take_all()
    classes = sorted({row["class"] for row in names})
    missing = sorted(set(source.classes or ()) - set(classes))
    if missing:
        raise DataError(f"--classes {missing[0]!r}: no drawing of this class in the source; it has {_shown(classes)}")

    num_shards = num_shards or -(-read // ROWS_PER_SHARD)
    # One boundary at least: without any, Ray Data would choose them by sampling.
    boundaries = [number * PLACES // num_shards for number in range(1, num_shards)] or [PLACES]
    provenance = {**source.provenance, "seed": seed, "num_shards": num_shards}
    schema = make_schema(classes, provenance)
    shuffled = parsed.sort("place", boundaries=boundaries)
    written = shuffled.map_batches(_Write(out, schema, classes, num_shards), batch_size=None, batch_format="pyarrow")
    reports, done = {}, 0
    for row in written.iter_rows():
        report = _ShardReport.model_validate_json(row["report"])
        reports[row["shard"]] = report
        done += sum(report.class_counts)
        rate = done / (time.perf_counter() - started)
        logger.info("wrote %d of %d shards, %s drawings, %s/s", len(reports), num_shards, f"{done:,}", f"{rate:,.0f}")

    ordered = [reports[name] for name in sorted(reports)]
    groups = [group for report in ordered for group in report.groups]
    counts = np.sum([report.class_counts for report in ordered], axis=0).tolist()
    splits = Counter(dict.fromkeys(SPLITS, 0))
    for group in groups:
        splits[group.split] += group.rows
    manifest = Manifest(
        classes=classes,
        splits=dict(splits),
        class_counts=dict(zip(classes, counts, strict=True)),
        duplicates=sum(report.duplicates for report in ordered),
        row_groups=groups,
        provenance=provenance,
    )
    filesystem, path = open_filesystem(out)
    with filesystem.open_output_stream(f"{path}/{MANIFEST}") as stream:
        stream.write(manifest.model_dump_json(indent=1).encode())
    if not source.provenance["synthetic"]:
        logger.info(ATTRIBUTION)
    return {
        "out": out,
        "drawings": done,
        "classes": len(classes),
        "splits": dict(splits),
        "duplicates": manifest.duplicates,
        "quarantined": 0,  # a bad record stops the run, so a run that ends has none
        "drawings_per_s": round(read / (time.perf_counter() - started)),
    }


def _distinct_classes(table: pa.Table) -> pa.Table:
    return pa.table({"class": table["class"].unique()})


def _shown(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")


def _entries(out: str) -> list[str]:
    filesystem, path = open_filesystem(out)
    selector = pafs.FileSelector(path, allow_not_found=True)
    return [info.base_name for info in filesystem.get_file_info(selector)]


def _is_ours(name: str) -> bool:
    return name == MANIFEST or (name.startswith("shard-") and name.endswith(".parquet"))


def _prepare(out: str) -> bool:
    """Makes `out` an empty directory; returns whether it was there. Shards of an ingest that was killed go."""
    filesystem, path = open_filesystem(out)
    kind = filesystem.get_file_info(path).type
    if kind == pafs.FileType.File:
        raise DataError(f"--out {out}: is a file; name a directory")
    entries = _entries(out)
    if MANIFEST in entries:
        raise DataError(f"--out {out}: already holds a data set; choose another directory or remove it")
    foreign = [name for name in entries if not _is_ours(name)]
    if foreign:
        raise DataError(f"--out {out}: holds other files ({foreign[0]}); choose an empty directory")
    try:
        for name in entries:
            filesystem.delete_file(f"{path}/{name}")
        filesystem.create_dir(path)
    except OSError as error:
        raise DataError(f"--out {out}: cannot write there ({error}); choose another directory") from error
    return bool(kind == pafs.FileType.Directory)


def _remove(out: str, existed: bool) -> None:
    filesystem, path = open_filesystem(out)
    for name in filter(_is_ours, _entries(out)):
        filesystem.delete_file(f"{path}/{name}")
    if not existed:
        filesystem.delete_dir(path)
