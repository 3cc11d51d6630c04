// A map of the load of all layers: a row for each layer, and a column for each expert.

import { ofShare } from "./colours.js";
import { html, percent } from "./dom.js";

const LEVELS = 32; // steps of colour

export function shares(counts) {
  const sum = counts.reduce((total, count) => total + count, 0) || 1;
  return counts.map((count) => count / sum);
}

export function loadMap(modality, { name, counts }, chosen, onLayer) {
  const byLayer = counts.map(shares);
  const [layers, experts] = [byLayer.length, byLayer[0].length];
  const most = Math.max(...byLayer.flat());
  const canvas = html("canvas", {
    width: experts,
    height: layers,
    role: "img",
    "aria-label": `${name}: the load of each expert by ${modality} tokens, layer by layer, the first at the top.`,
    onclick: (event) => {
      const box = canvas.getBoundingClientRect();
      onLayer(Math.min(layers - 1, Math.floor(((event.clientY - box.top) / box.height) * layers)));
    },
  });
  draw(canvas, byLayer, most);
  const mark = html("i", { class: "mark", "aria-hidden": true });
  mark.style.top = `${(100 * chosen) / layers}%`;
  mark.style.height = `${100 / layers}%`;
  const range = most ? `from 0 to ${percent(most, 1)} of the layer's load` : `no ${modality} tokens`;
  return html(
    "figure",
    { class: "load-map" },
    html("figcaption", {}, `${name}, all ${layers} layers: ${range}`),
    html("div", {}, canvas, mark),
  );
}

function draw(canvas, byLayer, most) {
  const colours = Array.from({ length: LEVELS + 1 }, (_, level) => ofShare(level / LEVELS));
  const context = canvas.getContext("2d");
  byLayer.forEach((row, layer) =>
    row.forEach((share, expert) => {
      context.fillStyle = colours[most ? Math.round((LEVELS * share) / most) : 0];
      context.fillRect(expert, layer, 1, 1);
    }),
  );
}
