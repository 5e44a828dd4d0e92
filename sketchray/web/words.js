// How a class is called in a sentence: "a cat", "an owl", "the Mona Lisa", "scissors".

// Of the 345 classes, those that take no article: plurals and what cannot be counted.
const BARE = new Set(
  (
    "binoculars,bread,broccoli,asparagus,camouflage,drums,eyeglasses,flip flops,grapes,grass,headphones,lightning," +
    "matches,pants,peas,pliers,rain,rollerskates,scissors,shorts,stairs,stitches,toothpaste,underwear,yoga"
  ).split(","),
);

export function withArticle(label) {
  if (label.startsWith("The ")) return `the ${label.slice(4)}`;
  if (BARE.has(label)) return label;
  return `${/^([aeio]|hour|um|un(?!i))/i.test(label) ? "an" : "a"} ${label}`;
}

/** Says a guess as someone would who is that sure of it. */
export function guessAloud(label, probability) {
  const thing = withArticle(label);
  if (probability >= 0.8) return `It’s ${thing}!`;
  if (probability >= 0.5) return `Looks like ${thing}.`;
  if (probability >= 0.25) return `Is it ${thing}?`;
  return `Hmm… ${thing}, maybe?`;
}

/** Returns the words in an order of chance. */
export function shuffled(words) {
  const deck = [...words];
  for (let i = deck.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [deck[i], deck[j]] = [deck[j], deck[i]];
  }
  return deck;
}
