// Turns strokes as drawn into a Quick, Draw! "simplified" record, so that the model sees what it was trained on.
// Source: github.com/googlecreativelab/quickdraw-dataset, "Simplified Drawing files": align to the top left, scale so
// that the maximum is 255, resample at 1 pixel, Ramer-Douglas-Peucker with epsilon 2.0. The details that the text leaves
// open (round only at the end, keep each stroke's last point, measure to the line and not to the segment) are those
// that reproduce a published record exactly.

const BOX = 255;
const SPACING = 1;
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
    return [kept.map(([x]) => Math.round(x)), kept.map(([, y]) => Math.round(y))];
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

/** Returns points `SPACING` apart along the polyline, and its last point. */
function resample(points) {
  const spaced = [points[0]];
  let [x, y] = points[0];
  let travelled = 0; // since the last point kept
  for (const [nextX, nextY] of points) {
    let length = Math.hypot(nextX - x, nextY - y);
    while (travelled + length >= SPACING) {
      const part = (SPACING - travelled) / length;
      x += part * (nextX - x);
      y += part * (nextY - y);
      spaced.push([x, y]);
      travelled = 0;
      length = Math.hypot(nextX - x, nextY - y);
    }
    travelled += length;
    [x, y] = [nextX, nextY];
  }
  // A dot becomes the same point twice: that is how the data set writes one.
  if (travelled > 0 || spaced.length === 1) spaced.push([x, y]);
  return spaced;
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
