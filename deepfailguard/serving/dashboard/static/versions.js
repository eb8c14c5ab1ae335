// The table of versions.

import { bar, sparkline } from "./charts.js";
import { breakable, byId, keyed, make, setText, tell } from "./dom.js";
import { bytes, clock, count, duration, NONE, percent, seconds, secondsPair, short } from "./format.js";
import { Series } from "./history.js";
import { reasonOf, rowId, SHAPES } from "./state.js";

const ACTIONS = {
  serving: ["Quarantine", "quarantine"],
  suspended: ["Quarantine", "quarantine"],
  quarantined: ["Release", "release"],
  shadow: ["Swap in", "swap"],
};

/** Returns what shows a status; `act(action, name)` is called on a click. */
export function versionsTable(act) {
  const show = keyed(byId("version-rows"), (one) => one.name, (one) => buildRow(one, act));
  return (status, now) => {
    byId("no-versions").hidden = status.versions.length > 0;
    show(status.versions, { now, status });
  };
}

function cell(label, kind, ...content) {
  return make("td", { role: "cell", "data-label": label, class: kind || null }, make("div", { class: "content" }, ...content));
}

function buildRow(version, act) {
  const parts = [nameCell(version), stateCell(), answeredCell(), faultsCell(), latencyCell()];
  parts.push(plain("Disagreement", (one) => percent(one.disagreement)));
  parts.push(plain("Failure probability", (one) => percent(one.failure_probability)), weightCell());
  parts.push(plain("Accuracy", (one) => percent(one.accuracy)), plain("Memory", (one) => bytes(one.memory)));
  parts.push(actionCell(act));
  const element = make("tr", { role: "row", tabindex: "-1" }, ...parts.map((part) => part.element));
  const update = (one, context) => {
    element.id = rowId(context.status.versions.indexOf(one));
    element.dataset.state = one.state;
    for (const part of parts) part.update(one, context);
  };
  return { element, update };
}

function plain(label, of) {
  const text = make("span");
  return { element: cell(label, "number", text), update: (one) => setText(text, of(one)) };
}

function nameCell(version) {
  const print = make("span", { class: "quiet print" });
  const name = make("span", { class: "name" }, ...breakable(version.name));
  const element = make("th", { role: "rowheader", scope: "row" }, make("div", { class: "content" }, name, print));
  const update = (one) => {
    setText(print, String(one.fingerprint ?? "").slice(0, 8));
    print.title = `Fingerprint of its weights: ${one.fingerprint}`;
  };
  return { element, update };
}

function stateCell() {
  const shape = make("span", { class: "shape", "aria-hidden": "true" });
  const [word, since, reason] = [make("b"), make("span", { class: "quiet" }), make("span", { class: "reason" })];
  const element = cell("State", "state-cell", make("span", { class: "badge" }, shape, " ", word), " ", since, reason);
  const update = (one, { now }) => {
    setText(shape, SHAPES[one.state]);
    shape.dataset.state = one.state;
    setText(word, one.shadow && one.state !== "shadow" ? `${one.state} shadow` : one.state);
    setText(since, `for ${duration(now / 1000 - one.since)}`);
    since.title = `since ${clock(one.since * 1000)}`;
    tell(reason, reasonOf(one));
    reason.title = reasonOf(one);
  };
  return { element, update };
}

function answeredCell() {
  const [share, of] = [make("span"), make("span", { class: "quiet" })];
  const update = (one) => {
    setText(share, one.asked ? percent(one.answered / one.asked) : NONE);
    setText(of, `of ${count(one.asked)}`);
  };
  return { element: cell("Answered", "number", share, " ", of), update };
}

function faultsCell() {
  const [kinds, last] = [make("span"), make("span", { class: "quiet" })];
  const update = (one, { now }) => {
    const faults = Object.entries(one.faults).sort((one, other) => other[1] - one[1]);
    setText(kinds, faults.map(([kind, number]) => `${count(number)}\u00a0×\u00a0${kind}`).join(", ") || "none");
    const ago = one.last_fault === null ? "" : `last ${duration(now / 1000 - one.last_fault)} ago`;
    tell(last, [ago, one.restarts ? `${count(one.restarts)}\u00a0×\u00a0restarted` : ""].filter(Boolean).join(", "));
  };
  return { element: cell("Faults", "faults", kinds, " ", last), update };
}

function latencyCell() {
  const [text, chart, half, most] = [make("span"), sparkline(["p99", "p50"]), new Series(), new Series()];
  const update = (one) => {
    setText(text, secondsPair(one.seconds_p50, one.seconds_p99));
    half.add(one.seconds_p50);
    most.add(one.seconds_p99);
    chart.show(most, half);
    element.title = `Since this page was opened; the highest p99 was ${seconds(most.highest)}`;
  };
  const element = cell("Latency p50 / p99", "number latency", text, chart.element);
  return { element, update };
}

function weightCell() {
  const [text, drawn] = [make("span"), bar("weight")];
  const update = (one) => {
    setText(text, short(one.weight));
    drawn.show(one.weight);
  };
  return { element: cell("Weight", "number weight", text, drawn.element), update };
}

function actionCell(act) {
  const button = make("button", { type: "button" });
  let [action, name] = ["", ""];
  button.addEventListener("click", () => act(action, name));
  const update = (one) => {
    const [label, now] = ACTIONS[one.state] ?? ACTIONS.serving;
    [action, name] = [now, one.name];
    setText(button, label);
    button.setAttribute("aria-label", `${label} ${one.name}`);
  };
  return { element: cell("", "action", button), update };
}
