// Making elements. Text from the server only ever becomes text: nothing here or elsewhere parses HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** An element with attributes (those that are null are left out) and children (elements, or text). */
export function make(tag, attributes = {}, ...children) {
  return dress(document.createElement(tag), attributes, children);
}

/** The same for a part of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, tag), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Change a text only where it differs: screen readers and selections are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Show an element with this text, or hide it where there is none. */
export function tell(element, text) {
  setText(element, text);
  element.hidden = !text;
}

/** A name whose line may be broken after its marks: as text, nothing is added to it. */
export function breakable(name) {
  const pieces = name.split(/(?<=[_+./-])(?=[^_+./-])/);
  return pieces.flatMap((piece, at) => (at ? [make("wbr"), piece] : [piece]));
}

const shown = new WeakMap();

/** Show a text whose lines "  - ..." are a list. */
export function prose(element, text) {
  if (shown.get(element) === text) return;
  shown.set(element, text);
  const parts = [];
  for (const line of text.split("\n").filter((one) => one.trim())) {
    const item = /^\s*- (.*)$/.exec(line);
    if (!item) parts.push(make("p", {}, line));
    else if (parts.at(-1)?.tagName === "UL") parts.at(-1).append(make("li", {}, item[1]));
    else parts.push(make("ul", {}, make("li", {}, item[1])));
  }
  element.replaceChildren(...parts);
}

/**
 * Keeps an element's children like a list of items: `build(item)` gives {element, update}, and the children of items
 * that stay are updated in place, so that focus and selections are not lost. Returns what shows other items.
 */
export function keyed(parent, keyOf, build) {
  const parts = new Map();
  return (items, context) => {
    const keys = items.map(keyOf);
    for (const [key, part] of parts) {
      if (keys.includes(key)) continue;
      part.element.remove();
      parts.delete(key);
    }
    items.forEach((item, at) => {
      if (!parts.has(keys[at])) parts.set(keys[at], build(item));
      const { element, update } = parts.get(keys[at]);
      update(item, context);
      if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null);
    });
  };
}
