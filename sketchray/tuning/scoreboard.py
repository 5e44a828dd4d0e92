"""What a sweep shows on a terminal while it runs: one small table, again when something changed."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sketchray.tuning.search import Entry

EVERY_S = 10.0  # between two tables, if nothing ended
AT_LEAST_S = 2.0  # between two tables in any case
ROWS = 8  # trials shown: those that run, then the best
WIDTH = 118


class Scoreboard:
    """Prints the table on stderr.

    Args:
        num_samples: trials of the whole sweep.
        num_epochs: of a trial that is not stopped.
        concurrent: trials at a time.
        before: trials that were over when this process began, by fate.
        best_before: the highest `val_top1` of those.
        time_budget_s: of this process.
    """

    def __init__(
        self,
        *,
        num_samples: int,
        num_epochs: int,
        concurrent: int,
        before: dict[str, int],
        best_before: float | None = None,
        time_budget_s: float | None = None,
    ) -> None:
        self.num_samples, self.num_epochs, self.concurrent = num_samples, num_epochs, concurrent
        self.before, self.best_before, self.time_budget_s = before, best_before, time_budget_s
        self.started = time.perf_counter()
        self._shown_at = 0.0
        self._shown: tuple[int, int] = (0, 0)

    def show(self, entries: "Iterable[Entry]", *, last: bool = False) -> None:
        """Prints the table, if it is time to."""
        known = list(entries)
        now = time.perf_counter()
        state = len(known), sum(entry.fate != "running" for entry in known)
        pause = AT_LEAST_S if state != self._shown else EVERY_S
        if (last and state != self._shown) or (not last and known and now - self._shown_at >= pause):
            self._shown_at, self._shown = now, state
            sys.stderr.write(self.render(known) + "\n")
            sys.stderr.flush()

    def render(self, entries: "list[Entry]") -> str:
        """Returns the table."""
        fates = dict(self.before)
        for entry in entries:
            fates[entry.fate] = fates.get(entry.fate, 0) + 1
        running = fates.pop("running", 0)
        over = sum(fates.values())
        counts = ", ".join(f"{count} {fate}" for fate, count in fates.items() if count) or "none over"
        best = max((max(entry.values.values()) for entry in entries if entry.values), default=None)
        best = max((value for value in (best, self.best_before) if value is not None), default=None)
        head = f"trials {over}/{self.num_samples}: {counts}; {running} running; "
        head += "no epoch yet" if best is None else f"best val_top1 {best:.1%}"
        head += f"; {_clock(time.perf_counter() - self.started)} gone, {self._left(entries, over)} left"
        order = sorted(entries, key=lambda entry: max(entry.values.values(), default=-1.0), reverse=True)
        order = [entry for entry in order if entry.fate == "running"] + [
            entry for entry in order if entry.fate not in ("running", "failed")
        ]
        lines = [head, "  trial  fate       epoch  last   best   configuration"]
        for entry in order[:ROWS]:
            epoch = max(entry.values, default=0)
            last = f"{entry.values[epoch]:6.1%}" if epoch else "     -"
            top = f"{max(entry.values.values()):6.1%}" if epoch else "     -"
            lines.append(
                f"  {entry.number:5d}  {entry.fate:<9}  {epoch:2d}/{self.num_epochs:<2d} {last} {top}   {entry.what}"
            )
        lines += [f"  {entry.number:5d}  failed: {entry.reason}" for entry in entries if entry.fate == "failed"][-2:]
        return "\n".join(line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines)

    def _left(self, entries: "list[Entry]", over: int) -> str:
        """Returns the time that is left, by the mean of the trials so far."""
        took = [entry.seconds for entry in entries if entry.fate != "running"]
        gone = time.perf_counter() - self.started
        guesses = []
        if took:
            guesses.append((self.num_samples - over) * sum(took) / len(took) / self.concurrent)
        if self.time_budget_s is not None:
            guesses.append(max(self.time_budget_s - gone, 0.0))
        return f"about {_clock(min(guesses))}" if guesses else "some time"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
