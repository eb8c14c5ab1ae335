// Asking for the status again and again: every second, less often while the server is gone, not while nobody looks.

const EVERY = 1000;
const RAREST = 15000;

/**
 * Calls `ask` over and over, and then `seen(answer)` or `lost(error, wait)`; wait in ms, null if it will not ask again
 * by itself, because a key is missing. `paused` tells that the tab is hidden. Returns what asks at once.
 */
export function poll({ ask, seen, lost, paused }) {
  let [turn, failures, timer] = [0, 0, null];

  async function look() {
    clearTimeout(timer);
    const mine = ++turn;
    let wait = EVERY;
    try {
      const answer = await ask();
      if (mine !== turn) return;
      seen(answer);
      failures = 0;
    } catch (error) {
      if (mine !== turn) return;
      failures += 1;
      wait = error.wantsKey ? null : Math.min(RAREST, EVERY * 2 ** (failures - 1));
      lost(error, wait);
    }
    if (wait !== null) timer = setTimeout(look, wait);
  }

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) return look();
    clearTimeout(timer);
    turn += 1;
    paused();
  });
  if (document.hidden) paused();
  else look();
  return look;
}
