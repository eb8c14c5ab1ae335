// Traffic, drift, events and what the server is built of.

import { sparkline } from "./charts.js";
import { byId, keyed, make, prose, setText } from "./dom.js";
import { clock, count, counted, duration, NONE, percent, short } from "./format.js";
import { Counters, Series } from "./history.js";

const DRIFT = {
  nothing: ["good", "● no change"],
  versions: ["warn", "▲ versions changed"],
  inputs: ["warn", "▲ inputs changed"],
  unclear: ["warn", "▲ something changed"],
  "not watched": ["quiet", "○ not watched"],
};

const counters = new Counters();
const tiles = {
  rate: tile("Inputs per second", "over the last 10 s"),
  abstained: tile("Abstained", "of the inputs of the last minute"),
  unanswered: tile("Unanswered", "no version could answer"),
  bad: tile("Refused inputs", "no images that can be judged"),
  disagreement: tile("Disagreement", "mean of the versions that serve"),
};

function tile(title, note) {
  const [value, about, chart, series] = [make("b"), make("span"), sparkline(["p50"]), new Series()];
  byId("tiles").append(make("div", { class: "tile" }, make("span", {}, title), value, chart.element, about));
  setText(value, NONE);
  setText(about, note);
  const show = (text, number, told = note) => {
    setText(value, text);
    setText(about, told);
    series.add(number);
    chart.show(series);
  };
  return show;
}

/** Show a status that came just now; `at` is when, in ms. */
export function showTraffic(status, at) {
  const { inputs, batches, abstained, unanswered, bad_inputs: bad } = status;
  counters.add(at, { inputs, batches, abstained, unanswered, bad }, status.started);
  const rate = counters.rate("inputs", 10);
  const size = batches ? `, ${short(inputs / batches)} in a batch` : "";
  tiles.rate(rate === null ? NONE : short(rate), rate, `${count(inputs)} since the start${size}`);
  const lately = counters.share("abstained", "inputs");
  const whole = inputs ? `last minute; ${percent(abstained / inputs)} since the start` : "no inputs yet";
  tiles.abstained(percent(lately), lately, whole);
  tiles.unanswered(count(unanswered), counters.rate("unanswered", 10));
  tiles.bad(count(bad), counters.rate("bad", 10));
  showDisagreement(status.versions);
}

function showDisagreement(versions) {
  const told = versions.filter((one) => one.state === "serving" && one.disagreement !== null);
  if (!told.length) return tiles.disagreement(NONE, null, "nothing seen yet");
  const mean = told.reduce((sum, one) => sum + one.disagreement, 0) / told.length;
  const most = told.reduce((one, other) => (other.disagreement > one.disagreement ? other : one));
  return tiles.disagreement(percent(mean), mean, `mean; most: ${most.name}, ${percent(most.disagreement)}`);
}

export function showDrift(status) {
  const [level, text] = DRIFT[status.drift] ?? ["quiet", status.drift];
  byId("drift-badge").dataset.level = level;
  setText(byId("drift-badge"), text);
  prose(byId("drift-text"), status.drift_text);
}

const showList = keyed(byId("events"), ([key]) => key, buildEvent);

/** Newest first; equal events are told apart by how often they came. */
export function showEvents(events) {
  byId("no-events").hidden = events.length > 0;
  byId("events").hidden = !events.length;
  const seen = new Map();
  const items = events.map((event) => {
    const key = JSON.stringify(event);
    seen.set(key, (seen.get(key) ?? 0) + 1);
    return [`${seen.get(key)} ${key}`, event];
  });
  showList(items.reverse());
}

function buildEvent([, event]) {
  const what = [event.event, event.kind].filter(Boolean).join(": ");
  const time = make("time", { datetime: event.time, title: event.time }, clock(Date.parse(event.time)));
  const who = event.version ? [make("b", {}, event.version), " "] : [];
  const detail = event.detail ? [" ", make("span", { class: "quiet" }, event.detail)] : [];
  return { element: make("li", {}, time, make("span", {}, ...who, what, ...detail)), update: () => {} };
}

export function showFacts(status, now) {
  const up = duration(now / 1000 - status.started);
  setText(byId("built"), `${counted(status.versions.length, "version")} (${status.isolation}), up for ${up}`);
  setText(byId("facts"), `Predictor ${status.predictor}, decision ${status.decision}, at least ${status.least_versions} must serve.`);
}
