// What the footer tells about the model, and the classes that the challenge draws from.

import { ApiError } from "./api.js";

const $ = (id) => document.getElementById(id);
const LONGEST_WAIT_S = 30;

export class ModelCard {
  classes = [];
  onKnown = () => {};
  onTrouble = () => {};
  #describe;
  #seen = null; // the version that came with the last answer
  #failures = 0;
  #timer = 0;
  #loading = false;

  /** @param describe `() -> Promise` of what `GET v1/model` answers */
  constructor(describe) {
    this.#describe = describe;
  }

  get inTrouble() {
    return this.#failures > 0;
  }

  /** Takes the version that came with an answer: the server may have got a new model under an open page. */
  seen(version) {
    if (this.#seen && version && version !== this.#seen) this.load();
    this.#seen = version ?? this.#seen;
  }

  /** Tries again at once if the model is still unknown. */
  retry() {
    if (this.classes.length === 0) this.load();
  }

  async load() {
    if (this.#loading) return;
    this.#loading = true;
    clearTimeout(this.#timer);
    try {
      const model = await this.#describe();
      this.#failures = 0;
      this.classes = Array.isArray(model.classes) ? model.classes.filter((name) => typeof name === "string") : [];
      this.#show(model);
      this.onKnown();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      this.#fail(error);
    } finally {
      this.#loading = false;
    }
  }

  #fail(error) {
    const again = error.kind === "busy" || error.kind === "gone";
    const seconds = Math.min(Math.max(2 ** this.#failures, error.retryAfterS ?? 0), LONGEST_WAIT_S);
    this.#failures += 1;
    if (again) this.#timer = setTimeout(() => this.load(), seconds * 1000);
    if (this.classes.length === 0) $("model").textContent = "The model is not known yet.";
    this.onTrouble(error, again ? seconds : null);
  }

  #show({ version, data, metrics }) {
    const count = this.classes.length;
    const facts = [version && `Model ${version}`, count > 0 && `${count} classes`, accuracy(metrics)];
    $("model").textContent = facts.filter(Boolean).join(" · ");
    const synthetic = data?.synthetic === true;
    $("synthetic").hidden = !synthetic;
    $("synthetic").textContent =
      "This model has seen generated doodles only, no human drawings: " +
      "it tries the program out, and knows nothing but the classes below.";
    $("credit").hidden = synthetic;
    $("known").hidden = count === 0;
    if (synthetic) $("known").open = true;
    $("known-title").textContent = count === 1 ? "The one thing it knows" : `The ${count} things it knows`;
    $("classes").replaceChildren(
      ...this.classes.map((name) => Object.assign(document.createElement("li"), { textContent: name })),
    );
  }
}

/** Top-1 accuracy, where the server tells one; a share (0..1). */
function accuracy(metrics) {
  const share = metrics?.test_top1 ?? metrics?.top1 ?? metrics?.val_top1;
  if (!(share >= 0 && share <= 1)) return "";
  return `right at first guess for ${(share * 100).toFixed(0)}\u00a0% of the drawings held back`;
}
