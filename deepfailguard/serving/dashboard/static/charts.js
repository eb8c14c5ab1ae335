// Small drawings beside numbers. The numbers tell all of it, so that screen readers skip the drawings.

import { draw } from "./dom.js";

const [WIDTH, HEIGHT] = [120, 24];

/** A sparkline of some series, the last one in front; `show` draws them anew. */
export function sparkline(names) {
  const lines = names.map((name) => draw("polyline", { class: `line ${name}` }));
  const box = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" };
  const element = draw("svg", box, ...lines);
  const show = (...series) => {
    const top = Math.max(...series.map((one) => one.highest)) || 1;
    series.forEach((one, at) => lines[at].setAttribute("points", points(one.values, top)));
  };
  return { element, show };
}

function points(all, top) {
  const values = all.slice(Math.max(0, all.findIndex((value) => value !== null)));
  const step = values.length > 1 ? WIDTH / (values.length - 1) : 0;
  return values
    .map((value, at) => (value === null ? null : `${(at * step).toFixed(1)},${height(value, top)}`))
    .filter((point) => point !== null)
    .join(" ");
}

const height = (value, top) => (HEIGHT - 1.5 - (value / top) * (HEIGHT - 3)).toFixed(1);

/** A bar for a share in [0, 1]; `show` sets it, null for none. */
export function bar(kind = "") {
  const filled = draw("rect", { height: "100%", width: "0" });
  const element = draw("svg", { class: `bar ${kind}`, "aria-hidden": "true" }, filled);
  const show = (share) => {
    element.classList.toggle("none", share === null);
    filled.setAttribute("width", `${(Math.min(1, Math.max(0, share ?? 0)) * 100).toFixed(1)}%`);
  };
  return { element, show };
}
