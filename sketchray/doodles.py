"""Generated doodles: ten geometric classes from a seeded generator, in the published form of Quick, Draw!.

They are synthetic. They stand in for drawings in the demo and the tests, where no data set is at hand.
"""

from collections.abc import Callable

import numpy as np

from sketchray.strokes import FloatArray, Int16Array, deltas, simplify

Strokes = list[FloatArray]


def _curve(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.stack([x, y], axis=1)


def _polygon(corners: FloatArray) -> Strokes:
    return [np.concatenate([corners, corners[:1]])]


def _ring(number: int, phase: float = 0.0, radius: float = 1.0) -> FloatArray:
    angle = phase + np.arange(number) * 2 * np.pi / number
    return _curve(radius * np.cos(angle), radius * np.sin(angle))


def _arrow(rng: np.random.Generator) -> Strokes:
    head = rng.uniform(0.3, 0.6)
    return [np.array([[-1.0, 0], [1, 0]]), np.array([[1 - head, -head], [1.0, 0], [1 - head, head]])]


def _circle(rng: np.random.Generator) -> Strokes:
    angle = np.linspace(0, 2 * np.pi * rng.uniform(0.95, 1.05), 40) + rng.uniform(0, 2 * np.pi)
    return [_curve(np.cos(angle), rng.uniform(0.8, 1.2) * np.sin(angle))]


def _cross(rng: np.random.Generator) -> Strokes:
    shift = rng.uniform(-0.2, 0.2)
    return [np.array([[-1.0, shift], [1, shift]]), np.array([[shift, -1.0], [shift, 1]])]


def _ladder(rng: np.random.Generator) -> Strokes:
    half = rng.uniform(0.25, 0.45)
    rungs = np.linspace(-0.8, 0.8, int(rng.integers(3, 7)))
    rails = [np.array([[side, -1.0], [side, 1.0]]) for side in (-half, half)]
    return rails + [np.array([[-half, y], [half, y]]) for y in rungs]


def _spiral(rng: np.random.Generator) -> Strokes:
    angle = np.linspace(0, 2 * np.pi * rng.uniform(2.2, 4), 120)
    return [_curve(angle * np.cos(angle), angle * np.sin(angle)) / angle[-1]]


def _square(rng: np.random.Generator) -> Strokes:
    return _polygon(_ring(4, np.pi / 4) * [1, rng.uniform(0.7, 1.3)])


def _star(rng: np.random.Generator) -> Strokes:
    return _polygon(_ring(5, -np.pi / 2)[[0, 2, 4, 1, 3]])


def _triangle(rng: np.random.Generator) -> Strokes:
    return _polygon(_ring(3, -np.pi / 2) * [1, rng.uniform(0.7, 1.3)])


def _wave(rng: np.random.Generator) -> Strokes:
    x = np.linspace(-1, 1, 80)
    return [_curve(x, rng.uniform(0.2, 0.4) * np.sin(x * np.pi * rng.uniform(1.5, 3.5)))]


def _zigzag(rng: np.random.Generator) -> Strokes:
    number = int(rng.integers(6, 12))
    height = rng.uniform(0.25, 0.5)
    return [_curve(np.linspace(-1, 1, number), np.where(np.arange(number) % 2, height, -height))]


SHAPES: dict[str, Callable[[np.random.Generator], Strokes]] = {
    "arrow": _arrow,
    "circle": _circle,
    "cross": _cross,
    "ladder": _ladder,
    "spiral": _spiral,
    "square": _square,
    "star": _star,
    "triangle": _triangle,
    "wave": _wave,
    "zigzag": _zigzag,
}
CLASSES = tuple(sorted(SHAPES))


def draw(name: str, index: int, seed: int = 0) -> Int16Array:
    """Returns doodle `index` of a class as `(N, 3)` points in the box 0..255; the same arguments, the same doodle.

    A shape is turned, stretched and shaken a little, and each stroke may be drawn from either end, as people do.
    """
    rng = np.random.default_rng([seed, CLASSES.index(name), index])
    angle, stretch = rng.uniform(-0.35, 0.35), rng.uniform(0.75, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    strokes = []
    for stroke in SHAPES[name](rng):
        bent = (stroke * [stretch, 1.0]) @ turn.T + rng.normal(0, 0.02, stroke.shape)
        strokes.append(bent[::-1] if rng.random() < 0.3 else bent)
    x, y = np.concatenate(strokes).T
    ends = np.cumsum([len(stroke) for stroke in strokes])
    x, y, ends = simplify(x, y, ends, np.array([len(strokes)]))
    return deltas(x.astype(np.int64), y.astype(np.int64), ends, ends[-1:])
