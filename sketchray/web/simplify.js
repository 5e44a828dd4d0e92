// Turns strokes as drawn into a Quick, Draw! "simplified" record, so that the model sees what it was trained on.
// Source: github.com/googlecreativelab/quickdraw-dataset, "Simplified Drawing files": align to the top left, scale so
// that the maximum is 255, resample at 1 pixel, Ramer-Douglas-Peucker with epsilon 2.0. The details that the text leaves
// open (round only at the end, keep each stroke's last point, measure to the line and not to the segment) are those
// that reproduce a published record exactly.

const BOX = 255;
const FIXED = 2 ** 40; // parts of a pixel in which lengths along a stroke are counted
const EPSILON = 2;

/**
 * Returns the record `[[[x...], [y...]], ...]` of integers 0..255 for strokes `[[[x, y], ...], ...]` in any unit.
 * Without two different points there is no shape to scale: the record is then empty.
 */
export function simplify(strokes) {
  const drawn = strokes.filter((stroke) => stroke.length > 0);
  const { left, top, extent } = bounds(drawn);
  if (!(extent > 0)) return [];
  const scale = BOX / extent;
  return drawn.map((stroke) => {
    const scaled = stroke.map(([x, y]) => [(x - left) * scale, (y - top) * scale]);
    const kept = reduce(resample(scaled));
    return [kept.map(([x]) => rint(x)), kept.map(([, y]) => rint(y))];
  });
}

function bounds(strokes) {
  let left = Infinity;
  let top = Infinity;
  let right = -Infinity;
  let bottom = -Infinity;
  for (const stroke of strokes) {
    for (const [x, y] of stroke) {
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
    }
  }
  return { left, top, extent: Math.max(right - left, bottom - top) };
}

/** Returns points 1 apart along the polyline, and its last point. */
function resample(points) {
  const last = points.length - 1;
  // Sums in fixed point, as in sketchray/strokes.py: where two points lie equally far, the last bit decides which stays.
  const reached = [0];
  for (let i = 1; i <= last; i++) {
    const length = Math.hypot(points[i][0] - points[i - 1][0], points[i][1] - points[i - 1][1]);
    reached.push(reached[i - 1] + rint(length * FIXED));
  }
  const steps = Math.max(Math.ceil(reached[last] / FIXED), 1); // a dot becomes the same point twice, as in the data set
  const spaced = [];
  let segment = 0;
  for (let step = 0; step <= steps; step++) {
    while (segment < last - 1 && reached[segment + 1] <= step * FIXED) segment += 1;
    const [x, y] = points[segment];
    const [nextX, nextY] = points[Math.min(segment + 1, last)];
    const length = reached[Math.min(segment + 1, last)] - reached[segment];
    const share = length > 0 ? (Math.min(step * FIXED, reached[last]) - reached[segment]) / length : 0;
    spaced.push([x + share * (nextX - x), y + share * (nextY - y)]);
  }
  return spaced;
}

/** Returns the nearest whole number; of two equally near ones the even one, as NumPy does. */
function rint(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 !== 0 ? rounded - 1 : rounded;
}

/** Ramer-Douglas-Peucker. A stack instead of recursion: a long scribble must not exhaust the call stack. */
function reduce(points) {
  const last = points.length - 1;
  const kept = new Set([0, last]);
  const spans = [[0, last]];
  while (spans.length > 0) {
    const [from, to] = spans.pop();
    let farthest = 0;
    let split = -1;
    for (let i = from + 1; i < to; i++) {
      const distance = distanceToLine(points[i], points[from], points[to]);
      if (distance > farthest) {
        farthest = distance;
        split = i;
      }
    }
    if (farthest > EPSILON) {
      kept.add(split);
      spans.push([from, split], [split, to]);
    }
  }
  return points.filter((_, i) => kept.has(i));
}

function distanceToLine([x, y], [ax, ay], [bx, by]) {
  const length = Math.hypot(bx - ax, by - ay);
  if (length === 0) return Math.hypot(x - ax, y - ay); // a closed loop has no line
  return Math.abs((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length;
}
