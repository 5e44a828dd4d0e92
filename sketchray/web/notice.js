// Says what is wrong with the server, when it is tried again, and takes a key where one is wanted.

const $ = (id) => document.getElementById(id);

export class Notice {
  #timer = 0;
  #said = "";
  #onKey;
  #speak;

  /**
   * @param onKey called with the text typed; returns whether it can be a key
   * @param onRetry called when someone does not want to wait
   * @param speak `(text)` for a screen reader
   */
  constructor({ onKey, onRetry, speak }) {
    this.#onKey = onKey;
    this.#speak = speak;
    $("retry").addEventListener("click", onRetry);
    $("key-form").addEventListener("submit", (event) => this.#submit(event));
  }

  /** Shows an ApiError; `seconds` until the next try, null if none is planned. */
  show({ kind, message }, seconds) {
    clearInterval(this.#timer);
    $("notice").hidden = false;
    $("notice").dataset.kind = kind;
    $("key-form").hidden = kind !== "key";
    $("retry").hidden = kind !== "gone";
    const due = performance.now() + (seconds ?? 0) * 1000;
    const tell = () => {
      const left = Math.ceil((due - performance.now()) / 1000);
      const when = left > 0 ? ` Trying again in ${left} s.` : " Trying again…";
      $("notice-text").textContent = message + (seconds === null ? "" : when);
    };
    tell();
    if (seconds !== null) this.#timer = setInterval(tell, 250);
    if (message !== this.#said) this.#speak(message); // once, not at each try
    this.#said = message;
  }

  hide() {
    clearInterval(this.#timer);
    this.#said = "";
    $("notice").hidden = true;
  }

  #submit(event) {
    event.preventDefault();
    const field = $("key");
    const usable = this.#onKey(field.value.trim());
    if (usable) field.value = "";
    else this.show({ kind: "key", message: "A key has no spaces and no accents." }, null);
  }
}
