// What was seen since the page was opened, in little memory.

const MOST = 240;

/** A series of any length in at most 240 values: when it is full, each two of them become the larger one. */
export class Series {
  values = [];
  #stride = 1;
  #pending = null;
  #waiting = 0;

  add(value) {
    if (typeof value === "number" && Number.isFinite(value)) this.#pending = Math.max(this.#pending ?? value, value);
    this.#waiting += 1;
    if (this.#waiting < this.#stride) return;
    this.values.push(this.#pending);
    [this.#pending, this.#waiting] = [null, 0];
    if (this.values.length >= MOST) this.#halve();
  }

  get highest() {
    return this.values.reduce((most, value) => (value === null ? most : Math.max(most, value)), 0);
  }

  #halve() {
    const half = [];
    for (let at = 0; at < this.values.length; at += 2) {
      const pair = this.values.slice(at, at + 2).filter((value) => value !== null);
      half.push(pair.length ? Math.max(...pair) : null);
    }
    this.values = half;
    this.#stride *= 2;
  }
}

/** Counters that only grow, of the last minute: rates and shares. */
export class Counters {
  #seen = [];

  /** Counters at a time in ms; `era` differs once the server was restarted, and then its counters began anew. */
  add(at, counters, era) {
    const last = this.#seen.at(-1);
    const anew = last && (last.era !== era || Object.keys(counters).some((name) => counters[name] < last[name]));
    if (anew) this.#seen = [];
    this.#seen.push({ ...counters, at, era });
    while (this.#seen.length > 2 && at - this.#seen[1].at >= 60000) this.#seen.shift();
  }

  /** Per second over about the last seconds; null as long as nothing can be said. */
  rate(name, over) {
    const [first, last] = this.#ends(over);
    return first ? ((last[name] - first[name]) * 1000) / (last.at - first.at) : null;
  }

  /** What part of one counter's growth in the last minute another one's was; null where the first did not grow. */
  share(part, whole) {
    const [first, last] = this.#ends(60);
    const grown = first ? last[whole] - first[whole] : 0;
    return grown > 0 ? (last[part] - first[part]) / grown : null;
  }

  #ends(over) {
    const last = this.#seen.at(-1);
    const first = this.#seen.find((one) => last.at - one.at <= over * 1000 + 500);
    return first && first !== last ? [first, last] : [this.#seen.at(-2), last];
  }
}
