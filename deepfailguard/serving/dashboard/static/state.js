// The first thing one sees: how the guard stands, who is out, and since when.

import { byId, keyed, make, setText, tell } from "./dom.js";
import { clock, counted, duration } from "./format.js";

export const SHAPES = { serving: "●", suspended: "▲", quarantined: "■", shadow: "○" };
const BANNER = { good: "●", warn: "▲", bad: "✖", gone: "✖", waiting: "◌" };

/** Versions that are not sound, those whose answers should count before shadows. */
export const sickOf = (status) => status.versions
  .filter((one) => one.state === "suspended" || one.state === "quarantined")
  .sort((one, other) => one.shadow - other.shadow);

/** Why it is out, without its state, which stands beside it. */
export const reasonOf = (one) => one.reason.replace(/^suspended for /, "");

/** "for 2 min, since 14:03:12". */
export const sinceWhen = (unix, now) => `for ${duration(now / 1000 - unix)}, since ${clock(unix * 1000)}`;

/** How the guard stands: {level, headline, note}. */
export function summary(status) {
  const shadows = status.versions.filter((one) => one.shadow).length;
  const all = status.versions.length - shadows;
  const beside = shadows ? `${counted(shadows, "shadow")} ${shadows === 1 ? "is" : "are"} asked beside them and never ${shadows === 1 ? "counts" : "count"}.` : "";
  const moved = { inputs: "the inputs have changed", versions: "versions have changed", unclear: "something has changed" }[status.drift];
  const drift = moved ? `Drift: ${status.drift_text.split("\n", 1)[0] || moved}` : "";
  const note = [drift, beside].filter(Boolean).join(". ");
  if (!status.ready) return { level: "bad", headline: notReady(status, all), note };
  const out = sickOf(status).filter((one) => !one.shadow).length;
  if (out) return { level: "warn", headline: `Degraded: ${out} of ${counted(all, "version")} ${out === 1 ? "is" : "are"} out`, note };
  if (status.degraded) return { level: "warn", headline: `Degraded, although all ${all} versions serve`, note };
  const well = all === 1 ? "The only version serves" : `All ${all} versions serve`;
  return moved ? { level: "warn", headline: `${well}, but ${moved}`, note } : { level: "good", headline: well, note };
}

function notReady(status, all) {
  if (status.serving >= status.least_versions) return "NOT READY: the server takes no requests now";
  return `NOT READY: ${status.serving} of ${counted(all, "version")} ${status.serving === 1 ? "serves" : "serve"}, ${status.least_versions} must`;
}

const showSick = keyed(byId("sick"), (one) => one.name, buildSick);

/** Show what the server told; `now` is its clock in ms. */
export function showState(status, now) {
  const { level, headline, note } = summary(status);
  banner(level, headline, note);
  const sick = sickOf(status);
  byId("sick").hidden = !sick.length;
  showSick(sick, { now, status });
  say([headline, ...sick.map((one) => `${one.name}: ${one.state}. ${reasonOf(one)}`), note].join(". "));
}

/** Show that nothing is known of the present. */
export function showUnknown(level, headline, note) {
  banner(level, headline, note);
  byId("sick").hidden = true;
  say(headline);
}

function banner(level, headline, note) {
  byId("state").dataset.level = level;
  setText(byId("shape"), BANNER[level]);
  setText(byId("headline"), headline);
  tell(byId("note"), note);
  setText(document.querySelector("title"), `${BANNER[level]} ${headline} – deepfailguard`);
}

/** For screen readers: only what changed, and no running times. */
const say = (text) => setText(byId("spoken"), text);

function buildSick() {
  const [name, state, when] = [make("a"), make("b"), make("span", { class: "when" })];
  const reason = make("span", { class: "reason" });
  const shape = make("span", { class: "shape", "aria-hidden": "true" });
  const element = make("li", {}, make("span", { class: "who" }, shape, " ", name), " ", make("span", {}, state, " ", when), " ", reason);
  const update = (one, { now, status }) => {
    setText(name, one.name);
    name.setAttribute("href", `#${rowId(status.versions.indexOf(one))}`);
    setText(shape, SHAPES[one.state]);
    shape.dataset.state = one.state;
    setText(state, one.shadow ? `${one.state} shadow` : one.state);
    setText(when, sinceWhen(one.since, now));
    setText(reason, reasonOf(one));
  };
  return { element, update };
}

export const rowId = (position) => `version-${position}`;
