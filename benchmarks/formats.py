"""How fast drawings of each format are read, in one process.

    python benchmarks/formats.py SOURCE [SOURCE ...]

A source is whatever `jobs/ingest.py --source` takes; its format is told from its bytes. The table has medians of five
rounds, each of which reads all sources once; run it with `taskset --cpu-list 0` for one core.
"""

import statistics
import sys
import time

from sketchray.sources import open_source

ROUNDS = 5


def main() -> None:
    """Reads the sources and prints the table."""
    opened = {source: open_source(source).fetched() for source in sys.argv[1:]}
    seconds: dict[str, list[float]] = {source: [] for source in opened}
    found: dict[str, tuple[int, int]] = {}
    for _ in range(ROUNDS):
        for name, source in opened.items():
            started = time.perf_counter()
            blocks = [block for part in range(len(source.parts)) for block in source.read(part)]
            seconds[name].append(time.perf_counter() - started)
            found[name] = sum(len(block.table) for block in blocks), sum(len(block.bad) for block in blocks)
    print("| source | format | drawings | bad records | drawings/s | MB/s |\n|---|---|---|---|---|---|")
    for name, source in opened.items():
        drawings, bad = found[name]
        taken = statistics.median(seconds[name])
        size = sum(part.num_bytes for part in source.parts) / 1e6
        format = source.parts[0].format
        print(f"| {name} | {format} | {drawings:,} | {bad:,} | {drawings / taken:,.0f} | {size / taken:.0f} |")


if __name__ == "__main__":
    main()
