// The one dialog: asks for what an action or the server needs, and shows what came of it.

import { byId, setText } from "./dom.js";
import { keepKey, keyOf } from "./api.js";

const dialog = byId("dialog");
let current = null;

/**
 * Opens the dialog. What it is asked: title, text, confirm (the button), reason (whether one is asked for), leaving
 * (names to choose from), whose key, and run({reason, leaving, force}), which returns what to show at the end, if
 * anything; an error that it throws is shown, and `error.forcible` offers force. Resolves true once it ran, or false.
 */
export function openDialog(asked) {
  if (current) return Promise.resolve(false); // one thing at a time: whoever asks later can be asked again
  return new Promise((resolve) => {
    current = { ...asked, resolve, done: false, busy: false };
    setText(byId("dialog-title"), asked.title);
    setText(byId("dialog-text"), asked.text);
    setText(byId("confirm"), asked.confirm);
    setText(byId("key-label"), asked.whose === "admin" ? "Admin key" : "Key");
    setText(byId("cancel"), "Cancel");
    byId("reason-row").hidden = !asked.reason;
    byId("leaving-row").hidden = !asked.leaving;
    byId("leaving").replaceChildren(...(asked.leaving ?? []).map((name) => new Option(name, name)));
    byId("reason").value = "";
    byId("key").value = keyOf(asked.whose);
    showFields(true);
    answer("", "");
    dialog.showModal();
    const first = asked.leaving ? "leaving" : asked.reason ? "reason" : byId("key").value ? "confirm" : "key";
    byId(first).focus();
  });
}

function showFields(shown) {
  byId("confirm").hidden = !shown;
  byId("force").hidden = true;
  byId("key-row").hidden = !shown;
  byId("key-note").hidden = !shown;
  if (!shown) for (const id of ["reason-row", "leaving-row"]) byId(id).hidden = true;
}

function answer(kind, text) {
  byId("dialog-answer").dataset.kind = kind;
  byId("dialog-answer").hidden = !text;
  setText(byId("dialog-answer"), text);
}

async function run(force) {
  const reason = byId("reason").value.trim();
  if (current.busy) return;
  if (current.reason && !reason) {
    answer("error", "A reason is needed: whoever reads the log will want to know.");
    byId("reason").focus();
    return;
  }
  keepKey(current.whose, byId("key").value.trim());
  await attempt({ reason, leaving: byId("leaving").value, force });
}

async function attempt(values) {
  const mine = current;
  busy(true);
  answer("", "");
  byId("force").hidden = true;
  try {
    const told = await mine.run(values);
    mine.done = true;
    if (mine === current) finish(told);
  } catch (error) {
    if (mine === current) refuse(mine, error);
  } finally {
    busy(false);
  }
}

function finish(told) {
  if (!told) return dialog.close();
  showFields(false);
  setText(byId("dialog-text"), "");
  setText(byId("cancel"), "Close");
  answer("good", told);
  byId("cancel").focus();
}

function refuse(mine, error) {
  answer("error", error.message);
  byId("force").hidden = !error.forcible;
  if (!error.wantsKey) return;
  keepKey(mine.whose, "");
  byId("key").focus();
  byId("key").select();
}

function busy(on) {
  if (current) current.busy = on;
  byId("dialog-form").setAttribute("aria-busy", String(on));
  for (const id of ["confirm", "force"]) byId(id).disabled = on;
}

byId("dialog-form").addEventListener("submit", (event) => {
  event.preventDefault();
  run(false);
});
byId("force").addEventListener("click", () => run(true));
byId("cancel").addEventListener("click", () => dialog.close());
byId("leaving").addEventListener("change", () => {
  byId("force").hidden = true;
  answer("", "");
});
dialog.addEventListener("close", () => {
  const closed = current;
  current = null;
  byId("key").value = "";
  closed?.resolve(closed.done);
});
