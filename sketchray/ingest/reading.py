"""The first pass of an ingest: groups of parts, read, checked and sorted into runs on disk."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel

from sketchray.columns import IntArray, from_column
from sketchray.errors import DataError
from sketchray.formats import Block
from sketchray.ingest.place import choose_place, content_hash
from sketchray.ingest.spill import RUN_SCHEMA, sort_unique, take, write_run
from sketchray.ingest.stage import STAGE, Stage
from sketchray.sources import Source
from sketchray.storage import open_filesystem

RUN_ROWS = 131_072  # drawings sorted at a time, about 40 MB
EXAMPLES = 20  # quarantined records that a report holds


class RefusedError(DataError):
    """The source is not accepted as it is; nothing of it is written."""


class GroupReport(BaseModel):
    """What a task found in its parts.

    Attributes:
        runs: rows of each run that it wrote.
        class_counts: drawings of each class in each part, by the part's number.
        bad: quarantined records, counted by kind.
        bad_files: that name each of them.
        examples: the first of them.
    """

    runs: list[int]
    class_counts: dict[int, dict[str, int]]
    duplicates: int
    bad: dict[str, int]
    bad_files: int
    examples: list[dict[str, Any]]


class Reader:
    """Reads groups of parts into runs. Runs in Ray's tasks."""

    def __init__(self, source: Source, stage: Stage, groups: Sequence[Sequence[int]], seed: int, strict: bool) -> None:
        self.source, self.stage, self.groups, self.seed, self.strict = source, stage, groups, seed, strict

    def __call__(self, group: int) -> int:
        """Reads a group; returns the number of its drawings."""
        report = GroupReport(runs=[], class_counts={}, duplicates=0, bad={}, bad_files=0, examples=[])
        bad: list[str] = []
        waiting: list[pa.Table] = []
        for part in self.groups[group]:
            uri = self.source.parts[part].uri
            seen = report.class_counts[part] = {}
            for block in self.source.read(part):
                for line, reason in block.bad:
                    if self.strict:
                        raise RefusedError(f"{uri}:{line}: {reason}; mend or remove it, or leave out --strict")
                    record = {"source": uri, "line": line, "reason": reason}
                    bad.append(json.dumps(record, ensure_ascii=False))
                    kind = kind_of(reason)
                    report.bad[kind] = report.bad.get(kind, 0) + 1
                    if len(report.examples) < EXAMPLES:
                        report.examples.append({**record, "source": self.source.parts[part].name})
                if len(block.table):
                    waiting.append(self._prepare(block, part, seen))
                if sum(map(len, waiting)) >= RUN_ROWS:
                    self._write_run(group, waiting, report)
                    waiting = []
                if len(bad) >= RUN_ROWS:
                    self._write_bad(group, bad, report)
                    bad = []
        if waiting:
            self._write_run(group, waiting, report)
        if bad:
            self._write_bad(group, bad, report)
        self.stage.write(f"{STAGE}/group-{group:05d}.json", report.model_dump_json().encode())
        return sum(sum(counts.values()) for counts in report.class_counts.values())

    def _prepare(self, block: Block, part: int, seen: dict[str, int]) -> pa.Table:
        """Returns a table by `RUN_SCHEMA`; counts the classes in `seen`."""
        table = block.table
        names = table["class"].combine_chunks()
        points, offsets = from_column(table["points"])
        content = content_hash(names, points, offsets)
        rank = _ranks(names, seen)
        columns = {
            **{name: table[name] for name in RUN_SCHEMA.names if name in table.column_names},
            "place": pa.array(choose_place(content, self.seed)),
            # A drawing without a key is its own key.
            "split_key": pc.coalesce(table["key_id"], pa.array(content)),
            "part": pa.array(np.full(len(table), part, np.int32)),
            "rank": pa.array(rank),
        }
        return pa.table(columns, schema=RUN_SCHEMA)

    def _write_run(self, group: int, tables: list[pa.Table], report: GroupReport) -> None:
        table = pa.concat_tables(tables).combine_chunks()
        order = sort_unique(table)
        name, run = run_name(group, len(report.runs)), take(table, order)

        def put() -> None:
            filesystem, path = open_filesystem(self.stage.out)
            with filesystem.open_output_stream(f"{path}/{STAGE}/{name}") as stream:
                write_run(stream, run)

        self.stage.use(put)
        report.runs.append(len(order))
        report.duplicates += len(table) - len(order)

    def _write_bad(self, group: int, bad: list[str], report: GroupReport) -> None:
        name = f"{STAGE}/bad-{group:05d}-{report.bad_files:05d}.ndjson"
        self.stage.write(name, "".join(f"{line}\n" for line in bad).encode())
        report.bad_files += 1


def run_name(group: int, number: int) -> str:
    """Returns the name of a run's file."""
    return f"run-{group:05d}-{number:03d}.arrow"


def kind_of(reason: str) -> str:
    """Returns what reasons of bad records have in common: numbers, and what is quoted or in brackets, are left out."""
    kind = re.sub(r" ?\(.*\)", "", reason)
    kind = re.sub(r"'.*'|\".*\"|\[[^\]]*\]", "…", kind)
    return re.sub(r"-?\d[\d,.]*", "N", kind).removesuffix(": …")[:100]


def _ranks(names: pa.StringArray, seen: dict[str, int]) -> IntArray:
    """Returns the rank of each drawing among those of its class in its part, and counts them in `seen`."""
    encoded = names.dictionary_encode()
    codes = encoded.indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    rank = np.empty(len(codes), np.int64)
    rank[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    for code, name in enumerate(encoded.dictionary.to_pylist()):
        rank[codes == code] += seen.get(name, 0)
        seen[name] = seen.get(name, 0) + int(counts[code])
    return rank
