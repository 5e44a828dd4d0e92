// The guesses as bars that glide: each row keeps its class and moves to its new place and length.

const EASE_MS = 90; // time in which a bar covers most (1 - 1/e) of what is left to go

export class Guesses {
  #list;
  #rows = new Map(); // label -> {element, bar, value, place, shown, target}
  #frame = 0;
  #time = 0;
  #calm = matchMedia("(prefers-reduced-motion: reduce)");

  /** @param list the `ol` that holds one row a guess */
  constructor(list) {
    this.#list = list;
  }

  /** Shows predictions, best first; none empties the list. */
  show(predictions) {
    const labels = new Set(predictions.map(({ label }) => label));
    for (const [label, row] of this.#rows) {
      if (!labels.has(label)) this.#leave(label, row);
    }
    predictions.forEach(({ label, probability }, place) => {
      const row = this.#rows.get(label) ?? this.#enter(label, place);
      row.target = { share: probability, place };
      row.value.textContent = percent(probability);
      row.element.classList.toggle("first", place === 0);
      // Read in the order seen. A row that already is there must not be put there again: that would restart its paint.
      if (this.#list.children[place] !== row.element) this.#list.insertBefore(row.element, this.#list.children[place]);
    });
    this.#time = performance.now();
    this.#frame ||= requestAnimationFrame((now) => this.#step(now));
  }

  #enter(label, place) {
    const element = document.createElement("li");
    const [bar, name, value] = ["bar", "name", "value"].map((className) => {
      const span = document.createElement("span");
      span.className = className;
      return span;
    });
    name.textContent = label;
    element.append(bar, name, " ", value);
    this.#list.append(element);
    if (!this.#calm.matches) element.animate([{ opacity: 0 }, { opacity: 1 }], 150);
    const row = { element, bar, value, shown: { share: 0, place }, target: { share: 0, place } };
    this.#rows.set(label, row);
    return row;
  }

  #leave(label, { element }) {
    this.#rows.delete(label);
    element.remove();
  }

  #step(now) {
    const rest = this.#calm.matches ? 0 : Math.exp(-Math.max(now - this.#time, 0) / EASE_MS);
    this.#time = now;
    let moving = false;
    for (const { element, bar, shown, target } of this.#rows.values()) {
      for (const what of ["share", "place"]) {
        const left = (shown[what] - target[what]) * rest;
        const there = Math.abs(left) < 0.001;
        shown[what] = there ? target[what] : target[what] + left;
        moving ||= !there;
      }
      element.style.transform = `translateY(${shown.place * 100}%)`;
      bar.style.transform = `scaleX(${shown.share})`;
    }
    this.#frame = moving ? requestAnimationFrame((next) => this.#step(next)) : 0;
  }
}

function percent(probability) {
  return probability > 0 && probability < 0.01 ? "<1\u00a0%" : `${Math.round(probability * 100)}\u00a0%`;
}
