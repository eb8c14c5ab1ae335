// What an operator can do, and the key that a server may want for everything else.

import { request } from "./api.js";
import { openDialog } from "./dialog.js";
import { counted } from "./format.js";

let asking = null;

/** A request for which the server may want a key: it is asked for once, by however many requests want it. */
export async function withKey(path, options) {
  try {
    return await request(path, options);
  } catch (error) {
    if (error.status !== 401) throw error;
    if (!(await askForKey(error.message))) throw error;
    return request(path, options);
  }
}

/** Ask for the key; a key that is refused is told so at once. Resolves whether there is one now. */
export function askForKey(why) {
  asking ??= openDialog({
    title: "This server wants a key",
    text: `It says: ${why}`,
    confirm: "Use this key",
    whose: "user",
    run: async () => void (await request("status")),
  }).finally(() => (asking = null));
  return asking;
}

/** Open the dialog of an action on a version; resolves true once it was done. */
export function act(action, name, status) {
  return openDialog({ quarantine, release, swap }[action](name, status));
}

const post = (path, json) => request(path, { method: "POST", json, whose: "admin", patience: 60000 });
const path = (name, action) => `versions/${encodeURIComponent(name)}/${action}`;

function quarantine(name, status) {
  const serves = status.versions.some((one) => one.name === name && one.state === "serving");
  const left = status.serving - Number(serves);
  const enough = left >= status.least_versions;
  const then = `Then ${counted(left, "version")} ${left === 1 ? "serves" : "serve"}; at least ${status.least_versions} must`;
  return {
    title: `Quarantine ${name}`,
    text: `Its answers no longer count until somebody releases it. ${then}${enough ? "." : ": the guard will abstain on every input."}`,
    confirm: "Quarantine",
    reason: true,
    whose: "admin",
    run: async ({ reason }) => void (await post(path(name, "quarantine"), { reason })),
  };
}

function release(name, status) {
  const reason = status.versions.find((one) => one.name === name)?.reason;
  return {
    title: `Release ${name}`,
    text: `It may answer again, and its answers count. It was set apart because: ${reason || "no reason was given"}.`,
    confirm: "Release",
    whose: "admin",
    run: async () => void (await post(path(name, "release"))),
  };
}

function swap(name, status) {
  return {
    title: `Swap in ${name}`,
    text: "It takes the place of a version. The gate compares both on the calibration images first.",
    confirm: "Swap",
    leaving: status.versions.filter((one) => !one.shadow).map((one) => one.name),
    whose: "admin",
    run: ({ leaving, force }) => swapped(leaving, name, force),
  };
}

async function swapped(leaving, entering, force) {
  try {
    const { data } = await post("versions/swap", { leaving, entering, force });
    return `${entering} serves in place of ${leaving}${data.allowed ? "" : ", by force"}.\n${gateInWords(data)}`;
  } catch (error) {
    if (!force && error.status === 409) error.forcible = true;
    throw error;
  }
}

function gateInWords(gate) {
  const signed = (share) => `${share < 0 ? "−" : "+"}${Math.abs(share * 100).toFixed(1)}`;
  const gain = typeof gate.gain === "number" ? `Gain in accuracy: ${signed(gate.gain)} points (${signed(gate.gain_low)} to ${signed(gate.gain_high)}), on ${counted(gate.inputs, "image")}.` : "";
  return [`The gate says: ${gate.reason}.`, gain].filter(Boolean).join("\n");
}
