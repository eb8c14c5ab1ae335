// A verdict on one image: the answer, why, and what each version said.

import { bar } from "./charts.js";
import { breakable, byId, make, prose } from "./dom.js";
import { NONE, percent, seconds, short } from "./format.js";
import { SHAPES } from "./state.js";

const MOST_CLASSES = 5;
const GROUNDS = {
  "all versions": "It rests on all versions.",
  "versions left": "It rests on a decision derived for the versions that are left.",
  "silent versions": "It rests on the decision for all versions, to which those that are missing said nothing.",
  "too few versions": "Fewer versions answered than must, so the guard abstains.",
  fallback: "No version answered: this is the fallback.",
};

/** Show a verdict as the server tells it, beside a picture. */
export function showVerdict(told, picture) {
  const top = make("div", { class: "top" }, picture, make("div", { class: "told-of" }, ...answerOf(told)));
  const why = make("div", { class: "told" });
  const words = told.explanation.replace(/^Input 0: /, ""); // there is but one
  prose(why, words.charAt(0).toUpperCase() + words.slice(1));
  const reasons = make("details", { open: "" }, make("summary", {}, "Why, in words"), why);
  const tables = [make("h3", {}, "What each version said"), versionsOf(told), make("h3", {}, "Classes"), classesOf(told)];
  byId("verdict").replaceChildren(top, ...tables, reasons);
  byId("verdict").hidden = false;
  byId("verdict").focus({ preventScroll: true });
}

function answerOf(told) {
  const wrong = `wrong with probability ${percent(told.failure_probability)}`;
  const guess = told.label < 0 ? "No version answered." : `Its best guess, ${told.class}, would be ${wrong}.`;
  const lines = told.abstained
    ? [make("p", { class: "answer-is abstained" }, "The guard abstains"), make("p", {}, guess)]
    : [make("p", { class: "answer-is" }, told.class), make("p", {}, wrong)];
  const ground = `${told.degraded ? "▲ Degraded. " : ""}${GROUNDS[told.ground] ?? told.ground}`;
  lines.push(make("p", { class: told.degraded ? "degraded" : "quiet" }, ground));
  const resized = told.resized_from ? `resized from ${told.resized_from.join(" × ")}, ` : "";
  lines.push(make("p", { class: "quiet" }, `${resized}answered in ${seconds(told.seconds)}`));
  return lines;
}

function versionsOf(told) {
  const titles = ["Version", "Answer", "Distance", "Failure probability", "Weight"];
  const heads = titles.map((title, at) => make("th", { role: "columnheader", scope: "col", class: at > 1 ? "number" : null }, title));
  const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads));
  const measured = told.versions.some((one) => one.found); // or distances were not asked for
  const rows = told.versions.map((one) => versionRow(one, told.label, measured));
  return make("table", { role: "table", class: "said" }, head, make("tbody", { role: "rowgroup" }, ...rows));
}

function versionRow(one, label, measured) {
  const silent = one.label < 0;
  const name = make("th", { role: "rowheader", scope: "row" }, ...breakable(one.name));
  if (one.state !== "serving") name.append(" ", make("span", { class: "badge" }, `${SHAPES[one.state] ?? ""} ${one.state}`));
  const agrees = silent ? "" : one.label === label ? " ✓" : " ≠";
  const answer = make("td", { role: "cell", "data-label": "Answer" }, make("span", {}, silent ? "no answer" : one.class, agrees));
  if (one.problem) answer.append(" ", make("span", { class: "reason" }, one.problem));
  const cells = [figure("Distance", distance(one, silent || !measured))];
  cells.push(figure("Failure probability", silent ? NONE : percent(one.failure_probability), silent ? 0 : one.failure_probability, "risk"));
  cells.push(figure("Weight", short(one.weight), one.weight, "weight"));
  return make("tr", { role: "row", class: silent ? "silent" : null }, name, answer, ...cells);
}

function distance(one, unknown) {
  if (unknown) return NONE;
  return one.found ? short(one.distance) : "no flip found";
}

function figure(label, text, share = null, kind = "") {
  const content = make("div", { class: "content" }, make("span", {}, text));
  if (share !== null) {
    const drawn = bar(kind);
    drawn.show(share);
    content.append(drawn.element);
  }
  return make("td", { role: "cell", class: "number", "data-label": label }, content);
}

function classesOf(told) {
  const all = Object.entries(told.probabilities).sort((one, other) => other[1] - one[1]);
  const shown = all.slice(0, all.length > MOST_CLASSES + 1 ? MOST_CLASSES : all.length);
  const rows = shown.map(([name, share]) => classRow(name, share));
  const rest = all.slice(shown.length);
  const left = rest.reduce((sum, [, share]) => sum + share, 0);
  if (rest.length) rows.push(classRow(`${rest.length} other classes together`, left, "rest"));
  return make("ul", { class: "classes" }, ...rows);
}

function classRow(name, share, kind = "") {
  const drawn = bar("weight");
  drawn.show(share);
  return make("li", { class: kind || null }, make("span", { class: "name" }, name), drawn.element, make("span", { class: "number" }, percent(share)));
}
