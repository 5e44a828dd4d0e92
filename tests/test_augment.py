"""Augmentation: what each change does to known drawings. Its switch and its seed are in test_model."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from sketchray import doodles
from sketchray.augment import AugmentConfig, augment
from sketchray.batch import pad

CLOSE = 0.01  # pixels: positions are sums of up to 200 float32 steps


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_points(number: int = 4) -> tuple[Tensor, Tensor]:
    drawings = [torch.from_numpy(doodles.draw(name, index)) for name in doodles.CLASSES for index in range(number)]
    lengths = torch.tensor([len(drawing) for drawing in drawings])
    return pad(torch.cat(drawings), torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]), 256)


def positions(points: Tensor, lengths: Tensor) -> list[np.ndarray[Any, Any]]:
    """The absolute x, y and pen_up of each drawing."""
    found = []
    for drawing, length in zip(points.double().numpy(), lengths.tolist(), strict=True):
        real = drawing[:length]
        found.append(np.column_stack([real[:, :2].cumsum(0), real[:, 2]]))
    return found


def find_maps(config: AugmentConfig) -> np.ndarray[Any, Any]:
    """The `(B, 2, 2)` matrices that took each drawing's positions to the changed ones."""
    points, lengths = make_points()
    changed = augment(points, lengths, config)
    assert torch.equal(changed[1], lengths)
    maps = []
    for before, after in zip(positions(points, lengths), positions(*changed), strict=True):
        solution = np.linalg.lstsq(before[:, :2], after[:, :2], rcond=None)[0]
        np.testing.assert_allclose(before[:, :2] @ solution, after[:, :2], atol=CLOSE)
        assert after[:, 2].tolist() == before[:, 2].tolist()
        maps.append(solution.T)
    return np.array(maps)


def test_turning_is_a_rotation_up_to_the_angle_and_another_for_each_drawing() -> None:
    maps = find_maps(AugmentConfig(rotate=0.5))
    np.testing.assert_allclose(maps @ maps.transpose(0, 2, 1), np.broadcast_to(np.eye(2), maps.shape), atol=1e-3)
    assert (np.linalg.det(maps) > 0).all()
    angles = np.arctan2(maps[:, 1, 0], maps[:, 0, 0])
    assert 0.3 < np.abs(angles).max() <= 0.5001
    assert angles.min() < -0.1 < 0.1 < angles.max()
    assert angles.std() > 0.1


def test_width_and_height_are_scaled_apart() -> None:
    maps = find_maps(AugmentConfig(scale=0.3))
    width, height = maps[:, 0, 0], maps[:, 1, 1]
    np.testing.assert_allclose(maps[:, [0, 1], [1, 0]], 0, atol=1e-3)
    for factor in (width, height):
        assert 0.699 < factor.min() < 0.85
        assert 1.15 < factor.max() < 1.301
    assert abs(np.corrcoef(width, height)[0, 1]) < 0.6


def test_shear_moves_x_along_y_only() -> None:
    maps = find_maps(AugmentConfig(shear=0.4))
    expected = np.broadcast_to(np.eye(2), maps.shape).copy()
    expected[:, 0, 1] = maps[:, 0, 1]
    np.testing.assert_allclose(maps, expected, atol=1e-3)
    assert 0.2 < np.abs(maps[:, 0, 1]).max() <= 0.401


def test_some_drawings_are_mirrored_and_the_others_are_as_they_were() -> None:
    sides = find_maps(AugmentConfig(flip=0.5))[:, 0, 0].round(3).tolist()
    assert set(sides) == {-1.0, 1.0}
    assert 8 < sides.count(-1.0) < 32  # of 40, even odds


def test_a_warp_is_smooth_bounded_and_another_for_each_drawing() -> None:
    points, lengths = make_points()
    before, after = positions(points, lengths), positions(*augment(points, lengths, AugmentConfig(warp=6)))
    moves = [new[:, :2] - old[:, :2] for old, new in zip(before, after, strict=True)]
    assert 3 < max(np.abs(move).max() for move in moves) <= 2 * 6 + CLOSE  # two waves
    for old, move in zip(before, moves, strict=True):
        # A wave is 160 pixels long at least in each direction, so it is no steeper than this.
        steepest = 2 * 6 * 2 * np.pi * np.sqrt(2) / 160
        distance = np.linalg.norm(np.diff(old[:, :2], axis=0), axis=1)
        assert (np.abs(np.diff(move, axis=0)).max(1) <= steepest * distance + CLOSE).all()
    assert len({round(float(move[0, 0]), 3) for move in moves}) > 30  # of 40


def strokes_of(drawing: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    return np.split(drawing[:, :2], np.flatnonzero(drawing[:, 2])[:-1] + 1)


def test_each_stroke_is_turned_scaled_and_shifted_by_itself() -> None:
    points, lengths = make_points(10)
    config = AugmentConfig(stroke_rotate=0.3, stroke_scale=0.2, stroke_shift=4)
    angles, sizes, shifts = [], [], []
    after = positions(*augment(points, lengths, config))
    for old, new in zip(positions(points, lengths), after, strict=True):
        for before, now in zip(strokes_of(old), strokes_of(new), strict=True):
            shifts.append(now.mean(0) - before.mean(0))
            x, y = (complex(1, 0) * (one - one.mean(0)) @ [1, 1j] for one in (before, now))
            if len(x) > 1 and np.abs(x).max() > 5:
                factor = (np.conj(x) @ y) / (np.conj(x) @ x)  # turned and scaled: one complex number
                np.testing.assert_allclose(y, factor * x, atol=CLOSE)
                angles.append(np.angle(factor))
                sizes.append(abs(factor))
    assert 0.2 < np.abs(angles).max() <= 0.3001
    assert 0.799 < min(sizes) < 0.87
    assert 1.13 < max(sizes) < 1.201
    assert np.std(shifts) == pytest.approx(4, rel=0.15)  # of some 300 numbers
    assert np.std(angles) > 0.1


def test_jitter_moves_each_point_by_itself() -> None:
    points, lengths = make_points()
    before, after = positions(points, lengths), positions(*augment(points, lengths, AugmentConfig(jitter=2)))
    moves = np.concatenate(after)[:, :2] - np.concatenate(before)[:, :2]
    assert moves.std() == pytest.approx(2, rel=0.1)  # of more than 500 numbers
    assert abs(np.corrcoef(moves[:-1, 0], moves[1:, 0])[0, 1]) < 0.2


def is_part(after: np.ndarray[Any, Any], before: np.ndarray[Any, Any]) -> bool:
    """Whether the rows of `after` are among those of `before`, in their order."""
    rows = iter(before)
    return all(any(np.abs(row - own).max() < CLOSE for row in rows) for own in after)


def test_points_are_lost_inside_strokes_only() -> None:
    points, lengths = make_points()
    after = positions(*augment(points, lengths, AugmentConfig(drop_points=0.8)))
    assert sum(map(len, after)) < 0.7 * int(lengths.sum())
    for old, new in zip(positions(points, lengths), after, strict=True):
        assert is_part(new, old)
        np.testing.assert_allclose(new[0], old[0], atol=CLOSE)
        np.testing.assert_allclose(new[new[:, 2] == 1], old[old[:, 2] == 1], atol=CLOSE)


def test_strokes_are_lost_whole_and_the_others_stay_in_place() -> None:
    points, lengths = make_points()
    changed = positions(*augment(points, lengths, AugmentConfig(drop_strokes=0.5)))
    fewer = 0
    for old, new in zip(positions(points, lengths), changed, strict=True):
        ends = np.flatnonzero(old[:, 2]) + 1
        strokes = np.split(old, ends[:-1])
        left = np.split(new, np.flatnonzero(new[:, 2])[:-1] + 1)
        assert is_part(new, old)
        assert all(any(len(one) == len(own) and is_part(one, own) for own in strokes) for one in left)
        fewer += len(strokes) - len(left)
    assert fewer > 10


def test_a_drawing_never_loses_everything() -> None:
    points, lengths = make_points()
    points[0] = torch.tensor([3, 0, 0])  # cut off inside its first stroke: no pen_up at all
    lengths[1] = 1
    points[1, 1:] = 0
    config = AugmentConfig(drop_points=0.99, drop_strokes=0.99, prefix=1)
    for _ in range(30):
        _, left = augment(points, lengths, config)
        assert (left >= 1).all()
        assert (left <= lengths).all()


def test_a_beginning_is_of_any_length_for_the_share_of_drawings_that_is_asked() -> None:
    points, lengths = make_points(20)
    changed = augment(points, lengths, AugmentConfig(prefix=0.5))
    cut = changed[1] < lengths
    assert 60 < int(cut.sum()) < 120  # of 200, half, less those cut in their last point
    share = (changed[1] / lengths)[cut]
    assert share.min() < 0.4
    assert share.max() > 0.7
    for old, new in zip(positions(points, lengths), positions(*changed), strict=True):
        np.testing.assert_allclose(new, old[: len(new)], atol=CLOSE)


@pytest.mark.parametrize("change", [{"flip": 1.1}, {"scale": 1.0}, {"drop_strokes": 1.0}, {"jitter": -1}, {"bend": 1}])
def test_impossible_changes_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**change)
