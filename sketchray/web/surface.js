// The paper: takes strokes from mouse, pen or finger and inks them. Points are kept in units of the side (0..1), so a
// drawing survives a turned phone.

const NIB = 0.011; // width of the ink, in sides
const NEAR = 0.0008; // a point nearer than this to the last adds nothing but work

export class Surface {
  #canvas;
  #ink;
  #strokes = [];
  #cleared = []; // what the last clear took away, for undo
  #paths = new WeakMap(); // stroke -> Path2D, until it grows
  #frame = 0;
  #pointer = null; // id of the one pointer that draws
  #onChange;

  /** @param onChange called with "grow" while a stroke grows and "end", "undo" or "clear" after each change */
  constructor(canvas, onChange) {
    this.#canvas = canvas;
    this.#ink = canvas.getContext("2d");
    this.#onChange = onChange;
    canvas.addEventListener("pointerdown", (event) => this.#down(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel", "lostpointercapture"]) {
      canvas.addEventListener(type, (event) => this.#up(event));
    }
    canvas.addEventListener("contextmenu", (event) => event.preventDefault()); // a finger held still opens it
    new ResizeObserver(() => this.#fit()).observe(canvas);
    window.addEventListener("resize", () => this.#fit()); // a move to another screen changes only the pixel ratio
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#redraw());
    matchMedia("(forced-colors: active)").addEventListener("change", () => this.#redraw());
  }

  get strokes() {
    return this.#strokes;
  }

  get canUndo() {
    return this.#strokes.length > 0 || this.#cleared.length > 0;
  }

  /** Takes back the last stroke, or the last clear. */
  undo() {
    this.#pointer = null;
    if (this.#strokes.length > 0) this.#strokes.pop();
    else this.#strokes = this.#cleared.splice(0);
    this.#redraw();
    this.#onChange("undo");
  }

  /** Blanks the paper; `forGood` where what was drawn is no part of what comes, and undo must not bring it back. */
  clear({ forGood = false } = {}) {
    this.#pointer = null;
    if (forGood) this.#cleared = [];
    else if (this.#strokes.length > 0) this.#cleared = this.#strokes;
    this.#strokes = [];
    this.#redraw();
    this.#onChange("clear");
  }

  #down(event) {
    if (this.#pointer !== null || event.button !== 0) return; // a palm beside the pen, a second finger
    event.preventDefault();
    document.activeElement?.blur?.(); // else Space would press the button that was used last
    this.#pointer = event.pointerId;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#cleared = [];
    this.#strokes.push([]);
    this.#add(event);
    this.#onChange("grow");
  }

  #move(event) {
    if (event.pointerId !== this.#pointer) return;
    // The browser hands over one event a frame; the points in between are in the coalesced ones (not in every browser).
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length > 0 ? events : [event]) this.#add(each);
    this.#onChange("grow");
  }

  #up(event) {
    if (event.pointerId !== this.#pointer) return;
    this.#pointer = null;
    this.#onChange("end");
  }

  #add(event) {
    const box = this.#canvas.getBoundingClientRect();
    // Kept on the paper: the model must see no more than the person does.
    const inside = (value) => Math.min(Math.max(value, NIB / 2), 1 - NIB / 2);
    const point = [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
    const stroke = this.#strokes.at(-1);
    const last = stroke.at(-1);
    if (last && Math.hypot(point[0] - last[0], point[1] - last[1]) < NEAR) return;
    stroke.push(point);
    this.#paths.delete(stroke);
    this.#redrawSoon();
  }

  #fit() {
    const pixels = Math.round(this.#canvas.clientWidth * devicePixelRatio);
    if (this.#canvas.width !== pixels) {
      this.#canvas.width = pixels;
      this.#canvas.height = pixels;
    }
    this.#redraw();
  }

  /** Once a frame is enough, however many points a fast pen delivers. */
  #redrawSoon() {
    this.#frame ||= requestAnimationFrame(() => this.#redraw());
  }

  #redraw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    const ink = this.#ink;
    const side = this.#canvas.width;
    ink.setTransform(side, 0, 0, side, 0, 0);
    ink.clearRect(0, 0, 1, 1);
    ink.strokeStyle = getComputedStyle(this.#canvas).color; // the theme's, or that of forced colours
    ink.lineWidth = NIB;
    ink.lineCap = "round";
    ink.lineJoin = "round";
    for (const stroke of this.#strokes) {
      if (!this.#paths.has(stroke)) this.#paths.set(stroke, path(stroke));
      ink.stroke(this.#paths.get(stroke));
    }
  }
}

/** Returns the stroke as a line through the middles of its pieces, which rounds the corners between samples. */
function path(stroke) {
  const line = new Path2D();
  line.moveTo(...stroke[0]);
  for (let i = 1; i < stroke.length - 1; i++) {
    const [x, y] = stroke[i];
    const [nextX, nextY] = stroke[i + 1];
    line.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  }
  line.lineTo(...stroke.at(-1)); // a dot: the round cap of a line to itself
  return line;
}
