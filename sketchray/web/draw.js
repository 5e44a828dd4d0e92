// The page: joins the paper, the server and the game, and says what happens.

import { classify, describeModel, setKey } from "./api.js";
import { Asker } from "./asker.js";
import { Challenge, ROUND_S } from "./challenge.js";
import { throwConfetti } from "./confetti.js";
import { Guesses } from "./guesses.js";
import { ModelCard } from "./model_card.js";
import { Notice } from "./notice.js";
import { simplify } from "./simplify.js";
import { Surface } from "./surface.js";
import { guessAloud, shuffled, withArticle } from "./words.js";

const TOP_K = 5;
const SPEAK_AFTER_MS = 900; // a reader hears the guess that stays, not each that passes

const $ = (id) => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const guesses = new Guesses($("guesses"));
const card = new ModelCard(describeModel);
const surface = new Surface($("canvas"), paperChanged);
const asker = new Asker({
  ask: (drawing, signal) => classify(drawing, TOP_K, signal),
  onAnswer: answered,
  onTrouble: trouble,
  onBusy: (busy) => $("guesses").setAttribute("aria-busy", String(busy)),
});
const notice = new Notice({ onKey: useKey, onRetry: retry, speak });
const challenge = new Challenge({ settled: (limitMs) => asker.settled(limitMs), show: showChallenge });

card.onTrouble = trouble;
card.onKnown = () => {
  if (!asker.waiting) notice.hide();
  if (surface.strokes.length === 0) headline(invitation(), "idle");
  $("go").hidden = card.classes.length === 0 || challenge.state === "running" || challenge.state === "judging";
};

function paperChanged(what) {
  const blank = surface.strokes.length === 0;
  $("paper").classList.toggle("used", !blank);
  $("undo").setAttribute("aria-disabled", String(!surface.canUndo));
  $("clear").setAttribute("aria-disabled", String(blank));
  if (what === "grow" && challenge.state === "ready") challenge.start(); // whoever starts to draw means "go"
  const drawing = simplify(surface.strokes);
  if (what !== "grow") {
    const { length } = surface.strokes;
    $("canvas").setAttribute("aria-label", `Your drawing: ${blank ? "blank" : plural(length, "stroke")}`);
  }
  if (drawing.length > 0) {
    if (what === "undo") asker.forget(); // an answer under way is about a line that is gone
    asker.about(drawing, { now: what !== "grow" });
    return;
  }
  asker.forget();
  if (what === "grow") return; // one dot so far: wait for what it becomes
  guesses.show([]);
  challenge.blank();
  $("meta").textContent = "";
  clearTimeout(speaking);
  spokenGuess = "";
  headline(blank ? invitation() : "A dot. Go on!", "idle");
  if (!asker.needsKey && !card.inTrouble) notice.hide(); // what the server said was about a drawing that is gone
}

/** Names a few classes to try: nobody can guess what a model knows. */
function invitation() {
  if (challenge.state === "ready") return "Ready when you are.";
  if (card.classes.length < 3 || challenge.state === "running") return "Show me what you’ve got.";
  const [one, two, three] = shuffled(card.classes).map(withArticle);
  return `Try ${one}, ${two} or ${three}.`;
}

function answered({ predictions, version, ms }, drawing) {
  notice.hide();
  card.seen(version);
  guesses.show(predictions);
  const points = drawing.reduce((sum, [xs]) => sum + xs.length, 0);
  const size = `${plural(drawing.length, "stroke")}, ${plural(points, "point")}`;
  $("meta").textContent = `${size}, answered in ${Math.max(1, Math.round(ms))}\u00a0ms`;
  const [first] = predictions;
  if (!first) return;
  const mood = first.probability >= 0.5 ? "sure" : "wondering";
  headline(guessAloud(first.label, first.probability), mood, first.label);
  speakGuess(first);
  challenge.hear(predictions);
}

let shownLabel = "";
function headline(text, mood, label = "") {
  $("headline").textContent = text;
  $("answer").dataset.mood = mood;
  if (label && label !== shownLabel && !calm.matches) {
    $("headline").animate([{ transform: "scale(0.96)" }, { transform: "scale(1.03)" }, { transform: "none" }], 220);
  }
  shownLabel = label;
}

let speaking = 0;
let spokenGuess = "";
function speak(text) {
  $("spoken").textContent = text;
}

function speakGuess({ label, probability }) {
  clearTimeout(speaking);
  if (label === spokenGuess) return;
  speaking = setTimeout(() => {
    spokenGuess = label;
    speak(`${label}, ${Math.round(probability * 100)} percent`);
  }, SPEAK_AFTER_MS);
}

const SIGHS = { key: "Who goes there?", busy: "One moment…", gone: "Hello? Anyone?", large: "Phew, that’s a lot." };

function trouble(error, seconds) {
  notice.show(error, seconds);
  headline(SIGHS[error.kind] ?? "Oh dear.", "trouble");
}

function retry() {
  card.retry();
  asker.retry();
}

function useKey(text) {
  if (!setKey(text)) return false;
  retry();
  return true;
}

window.addEventListener("online", retry);

function showChallenge({ state, word, left, won, text, score }) {
  const thing = withArticle(word || "thing");
  const before = $("prompt").dataset.state;
  $("prompt").dataset.state = state === "over" ? (won ? "won" : "lost") : state;
  const running = state === "running" || state === "judging";
  $("go").hidden = running || card.classes.length === 0;
  $("go").textContent = { off: "Challenge me", ready: "Go!", over: "Next" }[state] ?? "";
  $("skip").hidden = state !== "ready";
  $("stop").hidden = state === "off";
  $("timer").hidden = !running;
  $("score").hidden = state === "off" || challenge.rounds === 0;
  $("score").textContent = `${score} guessed`;
  if (running) {
    const whole = String(Math.ceil(left));
    if (whole !== $("timer-left").textContent && ["10", "5"].includes(whole)) speak(`${whole} seconds`);
    $("timer-left").textContent = whole;
    const part = (calm.matches ? Math.ceil(left) : left) / ROUND_S;
    $("timer-ring").style.strokeDashoffset = String(1 - part);
    $("timer").classList.toggle("hurry", left <= 5);
  }
  const line = {
    off: ["Draw anything, I’ll guess."],
    ready: [`${ROUND_S} seconds. Draw `, thing],
    running: ["Draw ", thing],
    judging: ["Let me see…"],
    over: [text],
  }[state];
  const [plain, strong] = line;
  const parts = strong ? [plain, Object.assign(document.createElement("strong"), { textContent: strong })] : [plain];
  if (state !== before || state === "ready") $("prompt-text").replaceChildren(...parts);
  if (state !== before && (state === "ready" || state === "off") && surface.strokes.length === 0) headline(invitation(), "idle");
  if (state === "ready") speak(`Draw ${thing} in ${ROUND_S} seconds. Press Go, or just start.`);
  if (state === "over") {
    speak(text);
    if (won) throwConfetti($("paper"));
  }
}

$("go").addEventListener("click", () => {
  if (challenge.state === "ready") {
    challenge.start();
    $("stop").focus(); // this button goes; the keyboard needs a place to stand
  } else {
    surface.clear({ forGood: true });
    challenge.next(card.classes);
  }
});
$("skip").addEventListener("click", () => challenge.next(card.classes));
$("stop").addEventListener("click", () => {
  challenge.stop();
  $("go").focus();
});

$("undo").addEventListener("click", () => surface.canUndo && surface.undo());
$("clear").addEventListener("click", () => surface.strokes.length > 0 && surface.clear());

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, textarea, select")) return;
  const undo = (event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "z";
  const clear = ["Escape", "Delete", "Backspace"].includes(event.key) && !event.ctrlKey && !event.metaKey;
  if (!undo && !clear) return;
  event.preventDefault();
  $(undo ? "undo" : "clear").click();
});

if (/Mac|iPhone|iPad/.test(navigator.platform)) $("undo-keys").textContent = "⌘ Z";

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

card.load();
