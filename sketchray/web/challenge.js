// The game: a class to draw, 20 seconds, and the question whether the model sees it.

import { shuffled, withArticle } from "./words.js";

export const ROUND_S = 20;
const SURE = 0.3; // a first guess below this, in the middle of a drawing, is luck
const LAST_ANSWER_MS = 1500; // how long the bell waits for an answer that is under way

export class Challenge {
  #deck = [];
  #word = "";
  #deadline = 0;
  #timer = 0;
  #guesses = null; // the latest answer of this round, none yet
  #settled;
  #show;
  state = "off"; // off, ready (the word is told), running, judging, over
  rounds = 0;
  wins = 0;

  /**
   * @param settled `(limitMs) -> Promise` that resolves when the last drawing is answered
   * @param show called with each change: `{state, word, left, won, text, score}`
   */
  constructor({ settled, show }) {
    this.#settled = settled;
    this.#show = show;
  }

  /** Tells the next word. Each class comes up once before any comes again. */
  next(classes) {
    clearInterval(this.#timer);
    this.#deck = this.#deck.filter((word) => classes.includes(word)); // the server may have a new model by now
    if (this.#deck.length === 0) this.#deck = shuffled(classes);
    this.#word = this.#deck.pop();
    this.state = "ready";
    this.#tell({ left: ROUND_S });
  }

  start() {
    this.#guesses = null;
    this.#deadline = performance.now() + ROUND_S * 1000;
    this.state = "running";
    this.#timer = setInterval(() => this.#tick(), 100);
    this.#tick();
  }

  stop() {
    clearInterval(this.#timer);
    this.state = "off";
    this.#tell({});
  }

  /** Takes each answer while a round runs. */
  hear(predictions) {
    if (this.state !== "running" && this.state !== "judging") return;
    this.#guesses = predictions;
    const [first] = predictions;
    if (this.state === "running" && first?.label === this.#word && first.probability >= SURE) this.#finish(true);
  }

  /** The paper is blank again: what was guessed before does not count. */
  blank() {
    if (this.state === "running") this.#guesses = null;
  }

  async #tick() {
    const left = (this.#deadline - performance.now()) / 1000;
    if (left > 0) {
      this.#tell({ left });
      return;
    }
    clearInterval(this.#timer);
    this.state = "judging";
    this.#tell({ left: 0 });
    const word = this.#word;
    await this.#settled(LAST_ANSWER_MS);
    if (this.state === "judging" && this.#word === word) this.#finish(this.#guesses?.[0]?.label === word);
  }

  #finish(won) {
    clearInterval(this.#timer);
    this.state = "over";
    if (this.#guesses?.length) this.rounds += 1; // a blank paper or a silent server is no round
    if (won) this.wins += 1;
    const left = Math.max(0, (this.#deadline - performance.now()) / 1000);
    this.#tell({ left, won, text: won ? this.#cheer(left) : this.#consolation() });
  }

  #cheer(left) {
    return `Got it! That’s ${withArticle(this.#word)}, in ${(ROUND_S - left).toFixed(1)}\u00a0s.`;
  }

  #consolation() {
    if (!this.#guesses?.length) return "Time’s up, and I saw nothing.";
    const place = this.#guesses.findIndex(({ label }) => label === this.#word);
    if (place > 0) return `Time’s up. My guess no. ${place + 1} was ${withArticle(this.#word)}.`;
    return `Time’s up. I saw ${withArticle(this.#guesses[0].label)}.`;
  }

  #tell(change) {
    this.#show({ state: this.state, word: this.#word, score: `${this.wins} of ${this.rounds}`, ...change });
  }
}
