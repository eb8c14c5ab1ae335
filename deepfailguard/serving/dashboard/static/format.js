// Numbers and times in words. What is not known is NONE, never 0.

export const NONE = "–";
const known = (value) => typeof value === "number" && Number.isFinite(value);

/** A share in [0, 1]; claims neither 0% nor 100% where it is only near. */
export function percent(share) {
  if (!known(share)) return NONE;
  if (share > 0 && share < 0.001) return "< 0.1%";
  if (share < 1 && share > 0.999) return "> 99.9%";
  return `${(share * 100).toFixed(1)}%`;
}

/** A number with three digits that count. */
export function short(value) {
  if (!known(value)) return NONE;
  return Math.abs(value) >= 1000 ? count(Math.round(value)) : String(Number(value.toPrecision(3)));
}

export const count = (value) => (known(value) ? value.toLocaleString("en") : NONE);

/** How long a computation took. */
export function seconds(value) {
  if (!known(value)) return NONE;
  return value < 1 ? `${Number((value * 1000).toPrecision(value < 0.01 ? 2 : 3))} ms` : `${value.toPrecision(3)} s`;
}

/** Two of them, with the unit once where it is the same: "3.1 / 6.2 ms". */
export function secondsPair(one, other) {
  const [first, second] = [seconds(one), seconds(other)];
  if (first === NONE && second === NONE) return NONE;
  const [value, unit] = first.split(" ");
  return unit && second.endsWith(` ${unit}`) ? `${value} / ${second}` : `${first} / ${second}`;
}

export function bytes(value) {
  if (!known(value)) return NONE;
  return value >= 1e9 ? `${(value / 1e9).toFixed(1)} GB` : `${Math.round(value / 1e6)} MB`;
}

/** How long something lasts: its largest unit, and the next one where it is not much smaller. */
export function duration(value) {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
}

/** A time of day here, with the date where it is not today. */
export function clock(milliseconds) {
  const date = new Date(milliseconds);
  if (Number.isNaN(date.getTime())) return NONE;
  const two = (number) => String(number).padStart(2, "0");
  const time = [date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(":");
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${time}`;
}

/** A sentence begins with a capital. */
export const sentence = (text) => text && `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** "1 version", "2 versions". */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
