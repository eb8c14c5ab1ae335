// Try an image: by file, by drop or by paste.

import { byId, setText, tell } from "./dom.js";
import { withKey } from "./operating.js";
import { preview } from "./preview.js";
import { showVerdict } from "./verdict.js";

const PATIENCE = 60000;
let latest = 0;

async function tryImage(file) {
  const mine = ++latest;
  const body = new FormData();
  body.append("file", file, file.name || "image");
  tell(byId("try-error"), "");
  tell(byId("trying"), `Asking about ${file.name || "the image"} …`);
  byId("verdict").hidden = true;
  const picture = preview(file);
  try {
    const { data } = await withKey("predict", { method: "POST", body, patience: PATIENCE });
    if (mine === latest) showVerdict(data, await picture);
  } catch (error) {
    if (mine === latest) tell(byId("try-error"), `No verdict: ${error.message}`);
  } finally {
    if (mine === latest) setText(byId("trying"), "");
    if (mine === latest) byId("trying").hidden = true;
  }
}

function take(files) {
  if (!files.length) return;
  byId("try").scrollIntoView({ block: "nearest" });
  tryImage(files[0]);
}

const holdsFiles = (event) => Boolean(event.dataTransfer?.types.includes("Files"));
const mark = (on) => document.body.toggleAttribute("data-dragging", on);

/** Wait for images. */
export function waitForImages() {
  byId("file").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = ""; // the same file can be chosen again
  });
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (files.length) event.preventDefault();
    take(files);
  });
  document.addEventListener("dragover", (event) => {
    if (!holdsFiles(event)) return;
    event.preventDefault();
    mark(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) mark(false);
  });
  document.addEventListener("drop", (event) => {
    mark(false);
    if (!holdsFiles(event)) return;
    event.preventDefault(); // or the browser leaves this page for the file
    take([...event.dataTransfer.files]);
  });
}
