"""A job that fills the object store of every node that works, and keeps it full until the job is stopped.

python benchmarks/fill_store.py
"""

import time
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PIECE_BYTES = 4 << 20


class Holder:
    """Holds objects in the store of its node, and looks at them, so that Ray can neither drop nor spill them."""

    def __init__(self) -> None:
        self.pieces: list[Any] = []

    def fill(self, size: int) -> int:
        """Puts objects until they are larger than the store together; returns their size in bytes."""
        while len(self.pieces) * PIECE_BYTES < size:
            reference = ray.put(np.full(PIECE_BYTES, len(self.pieces) % 256, np.uint8))
            self.pieces.append((reference, ray.get(reference)))
        return len(self.pieces) * PIECE_BYTES


def main() -> None:
    """Fills the stores, then waits."""
    ray.init()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    holders = [
        ray.remote(Holder)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in nodes
    ]
    sizes = [int(1.2 * node["Resources"]["object_store_memory"]) for node in nodes]
    put = ray.get([holder.fill.remote(size) for holder, size in zip(holders, sizes, strict=True)])
    print(f"full: {sum(put)} bytes", flush=True)
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
