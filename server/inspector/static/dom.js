// Makes elements.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("aria-")) element.setAttribute(name, String(value));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export const byId = (id) => document.getElementById(id);

export const html = (tag, attributes = {}, ...children) =>
  filled(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  filled(document.createElementNS(SVG, tag), attributes, children);

export function swatch(colour) {
  const square = html("i", { class: "swatch", "aria-hidden": true });
  square.style.backgroundColor = colour;
  return square;
}

export const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)}%`;

export const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
