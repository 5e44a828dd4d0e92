// Decides when to ask: at most one request in flight, the latest drawing wins, and a server in trouble is left alone.

import { ApiError } from "./api.js";

const GAP_MS = 150; // between two requests while a stroke grows: about as often as a person sees the bars change
const LONGEST_WAIT_S = 30; // then try again, whatever the server wished

export class Asker {
  #ask;
  #onAnswer;
  #onTrouble;
  #onBusy;
  #waiting = null; // the latest drawing not yet sent
  #answered = ""; // what the last answer was about, to not ask twice
  #flight = null; // AbortController of the request under way
  #timer = 0;
  #notBefore = 0;
  #failures = 0;
  #blocked = false; // until someone types a key
  #settled = [];

  /**
   * @param ask `(drawing, signal) -> Promise<answer>`
   * @param onAnswer called with each answer that is still about the drawing on the page
   * @param onTrouble called with an ApiError and the seconds until the next try (null: none is planned)
   * @param onBusy called with true while what was answered last is not about the drawing on the page, then with false
   */
  constructor({ ask, onAnswer, onTrouble, onBusy }) {
    this.#ask = ask;
    this.#onAnswer = onAnswer;
    this.#onTrouble = onTrouble;
    this.#onBusy = onBusy;
  }

  /** Asks about a simplified drawing; `now` skips the gap (a stroke has just ended), never a wait that the server set. */
  about(drawing, { now = false } = {}) {
    this.#waiting = drawing;
    this.#onBusy(true);
    if (now && this.#failures === 0) this.#notBefore = 0;
    this.#pump();
  }

  /** Forgets the drawing; an answer still under way is dropped. */
  forget() {
    this.#waiting = null;
    this.#answered = "";
    this.#flight?.abort();
    this.#pump();
  }

  /** Tries at once: a key was typed, the network is back, or someone pressed the button. */
  retry() {
    this.#blocked = false;
    this.#notBefore = 0;
    this.#pump();
  }

  /** Whether a drawing waits for its turn, or for a key. */
  get waiting() {
    return this.#waiting !== null;
  }

  get needsKey() {
    return this.#blocked;
  }

  /** Resolves when nothing is waiting or under way, or after `limitMs`. */
  settled(limitMs) {
    if (!this.#flight && !this.#waiting) return Promise.resolve();
    return new Promise((resolve) => {
      this.#settled.push(resolve);
      setTimeout(resolve, limitMs);
    });
  }

  #pump() {
    clearTimeout(this.#timer);
    if (this.#flight) return;
    if (this.#waiting && JSON.stringify(this.#waiting) === this.#answered) this.#waiting = null;
    if (!this.#waiting) {
      this.#onBusy(false);
      this.#settled.splice(0).forEach((resolve) => resolve());
      return;
    }
    if (this.#blocked) return;
    const wait = this.#notBefore - performance.now();
    if (wait > 0) this.#timer = setTimeout(() => this.#pump(), wait);
    else this.#send();
  }

  async #send() {
    const drawing = this.#waiting;
    const flight = new AbortController();
    this.#waiting = null;
    this.#flight = flight;
    this.#notBefore = performance.now() + GAP_MS;
    try {
      const answer = await this.#ask(drawing, flight.signal);
      if (!flight.signal.aborted) {
        this.#failures = 0;
        this.#answered = JSON.stringify(drawing);
        this.#onAnswer(answer, drawing);
      }
    } catch (error) {
      if (!flight.signal.aborted) this.#fail(error, drawing);
    } finally {
      this.#flight = null;
      this.#pump();
    }
  }

  #fail(error, drawing) {
    if (!(error instanceof ApiError)) throw error;
    if (error.kind === "key") {
      this.#blocked = true;
      this.#waiting ??= drawing;
      this.#onTrouble(error, null);
    } else if (error.kind === "busy" || error.kind === "gone") {
      // The server's own wish, spread out: a crowd that comes back all at once finds it busy again. Else longer each time.
      const wish = error.retryAfterS === null ? null : Math.max(error.retryAfterS, 1) * (1 + Math.random() / 2);
      const seconds = Math.min(wish ?? 2 ** this.#failures, LONGEST_WAIT_S);
      this.#failures += 1;
      this.#notBefore = performance.now() + seconds * 1000;
      this.#waiting ??= drawing;
      this.#onTrouble(error, seconds);
    } else {
      this.#answered = JSON.stringify(drawing); // the same drawing would fail the same way
      this.#onTrouble(error, null);
    }
  }
}
