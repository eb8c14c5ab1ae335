// A small picture of a file, drawn here: no address has to be allowed for it.

import { make } from "./dom.js";

const SIDE = 176;
const LARGEST = 64 * 2 ** 20;

/** A canvas, or a text where the browser cannot show the file. */
export async function preview(file) {
  if (file.size > LARGEST) return make("span", { class: "preview none" }, "too large to show");
  let picture;
  try {
    picture = await createImageBitmap(file);
  } catch {
    return make("span", { class: "preview none" }, "this browser cannot show it");
  }
  return drawn(picture, file.name);
}

function drawn(picture, name) {
  const { width, height } = picture;
  const scale = SIDE / Math.max(width, height);
  const small = scale >= 1;
  const size = [width, height].map((side) => Math.max(1, Math.round(side * scale)));
  const label = `${name || "The image"}, ${width} × ${height} pixels`;
  const canvas = make("canvas", { width: size[0], height: size[1], class: "preview", role: "img", "aria-label": label, title: label });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = !small; // its pixels are what the versions see
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, ...size);
  picture.close();
  return canvas;
}
