// A win deserves paper scraps. They are ornaments: unseen by readers, and absent where motion is unwelcome.

const PIECES = 70;
const COLOURS = 5; // .scrap-0 … .scrap-4 in style.css

export function throwConfetti(over) {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  const box = document.createElement("div");
  box.className = "confetti";
  box.setAttribute("aria-hidden", "true");
  over.append(box);
  const flights = Array.from({ length: PIECES }, (_, i) => {
    const scrap = document.createElement("i");
    scrap.className = `scrap-${i % COLOURS}`;
    box.append(scrap);
    return fly(scrap, over.clientWidth);
  });
  Promise.allSettled(flights).then(() => box.remove());
}

/** Throws one scrap up from the middle and lets it fall. */
function fly(scrap, side) {
  const across = (Math.random() - 0.5) * side * 1.1;
  const up = -side * (0.25 + Math.random() * 0.35);
  const turn = (Math.random() - 0.5) * 1440;
  const frames = [
    { transform: "translate(0, 0) rotate(0)", opacity: 1, easing: "cubic-bezier(0.1, 0.7, 0.5, 1)" },
    { transform: `translate(${across * 0.7}px, ${up}px) rotate(${turn / 2}deg)`, opacity: 1, easing: "ease-in" },
    { transform: `translate(${across}px, ${side * 0.6}px) rotate(${turn}deg)`, opacity: 0 },
  ];
  return scrap.animate(frames, { duration: 1400 + Math.random() * 900, fill: "forwards" }).finished;
}
