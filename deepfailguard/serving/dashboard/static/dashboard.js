// Starts the page: the server's status, again and again, into all of its parts.

import { byId, setText } from "./dom.js";
import { clock, duration, sentence } from "./format.js";
import { act, withKey } from "./operating.js";
import { poll } from "./polling.js";
import { showState, showUnknown } from "./state.js";
import { showDrift, showEvents, showFacts, showTraffic } from "./traffic.js";
import { waitForImages } from "./trying.js";
import { versionsTable } from "./versions.js";

const OLD = 5000; // ms after which a status is no longer the present
const AHEAD = 2000; // ms that the Date header and the way here may be off

let status = null; // the newest one
let heard = null; // when it came, in ms
let offset = 0; // of the server's clock, in ms
let trouble = null; // {headline, text, retry} since the newest one, if anything is wrong
const now = () => Date.now() + offset;
const showVersions = versionsTable(operate);

function seen({ data, date }) {
  status = data;
  const ahead = date === null ? 0 : date - Date.now();
  offset = Math.abs(ahead) > AHEAD ? ahead : 0;
  heard = Date.now();
  trouble = null;
  connection("live", "live");
  showState(status, now());
  showVersions(status, now());
  showFacts(status, now());
  showTraffic(status, heard);
  showDrift(status);
  showEvents(status.events);
}

function lost(error, wait) {
  const headline = headlineOf(error);
  const retry = wait === null ? null : Date.now() + wait;
  trouble = { headline, text: error.message, retry };
  showTrouble();
}

function headlineOf(error) {
  if (error.wantsKey) return "The server wants a key";
  if (error.status === undefined) return "The status cannot be shown"; // a mistake here, or not the server that is meant
  return error.status ? "The server gives no status" : "The server does not answer";
}

function paused() {
  trouble = { headline: "Paused while this tab is hidden", text: "", retry: null, level: "waiting" };
  showTrouble();
}

/** Nothing that was true before is shown as if it were true now. */
function showTrouble() {
  const { headline, text, retry, level = "gone" } = trouble;
  const last = heard ? `What stands below is old: it came at ${clock(heard)}, ${duration((Date.now() - heard) / 1000)} ago.` : "";
  const next = retry === null ? "" : `Next try in ${duration((retry - Date.now()) / 1000)}.`;
  showUnknown(level, headline, [sentence(text), last, next].filter(Boolean).join(" "));
  connection(level, level === "gone" ? "not live" : "paused");
}

function connection(level, text) {
  byId("connection").dataset.level = level;
  setText(byId("connection-text"), text);
  byId("main").toggleAttribute("data-old", level !== "live" && heard !== null);
  byId("again").hidden = level !== "gone";
}

function tick() {
  if (!trouble && heard && Date.now() - heard > OLD) {
    trouble = { headline: "The server does not answer", text: "It was asked, and nothing has come yet", retry: null };
  }
  if (trouble) showTrouble();
}

async function operate(action, name) {
  await act(action, name, status);
  look();
}

const look = poll({ ask: () => withKey("status"), seen, lost, paused });
byId("again").addEventListener("click", look);
setInterval(tick, 1000);
waitForImages();
