"""Places and splits: hashes of what a drawing is."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from sketchray.ingest.place import PLACES, choose_place, choose_split, content_hash


def test_split_shares() -> None:
    shares = Counter(choose_split(np.arange(100_000, dtype=np.uint64)).tolist())
    # The standard deviation of a share of 100,000 is below 0.13 %.
    assert shares["train"] / 1e5 == pytest.approx(0.8, abs=0.006)
    assert shares["valid"] / 1e5 == pytest.approx(0.1, abs=0.006)


def test_hash_tells_class_order_and_value() -> None:
    points = np.array([[1, 2, 0], [3, 4, 1]], np.int16)
    swapped = points[::-1].copy()
    shifted = points + np.int16(1)

    def hash_of(name: str, drawing: np.ndarray) -> int:
        return int(content_hash(pa.array([name]), drawing, np.array([0, len(drawing)]))[0])

    variants = [hash_of("a", points), hash_of("b", points), hash_of("a", swapped), hash_of("a", shifted)]
    assert len(set(variants)) == 4
    batch = content_hash(pa.array(["a", "b", "a"]), np.concatenate([points, points, swapped]), np.array([0, 2, 4, 6]))
    assert batch.tolist() == variants[:3]


def test_places_lie_evenly_and_another_seed_shuffles_anew() -> None:
    content = np.arange(100_000, dtype=np.uint64)
    place = choose_place(content, 0)
    assert place.min() >= 0
    # Ten equal ranges of 100,000 drawings: the standard deviation of one is 95.
    assert np.abs(np.bincount(place // (PLACES // 10 + 1), minlength=10) - 10_000).max() < 500
    assert abs(np.corrcoef(place, choose_place(content, 1))[0, 1]) < 0.02
