// Expert load by modality: this request's beside the server's.

import { ofExpert } from "./colours.js";
import { html, percent } from "./dom.js";

const MODALITIES = ["text", "vision"];

// How a request's tokens of each modality chose among the experts: a list of counts each.
export function countsOf(inspection, layer, experts) {
  const counts = MODALITIES.map(() => Array(experts).fill(0));
  inspection.tokens.forEach((token, index) => {
    const row = counts[MODALITIES.indexOf(token.modality)];
    for (const expert of layer.experts[index]) row[expert] += 1;
  });
  return counts;
}

// `series`: for each column its name and its counts by modality and expert.
export function loadTables(series, experts) {
  return MODALITIES.map((modality, row) => {
    const columns = series.map(({ name, counts }) => ({ name, shares: shares(counts[row]) }));
    const most = Math.max(...columns.flatMap((column) => column.shares), 1 / experts);
    const lines = Array.from({ length: experts }, (_, expert) =>
      html(
        "tr",
        {},
        html("th", { scope: "row" }, swatch(expert), String(expert)),
        ...columns.map(({ name, shares }) => shareCell(expert, shares[expert], most, name === "Server")),
      ),
    );
    const heads = columns.map(({ name }) => html("th", { scope: "col" }, name));
    return html(
      "table",
      { class: "load" },
      html("caption", {}, modality === "text" ? "Text tokens" : "Vision tokens"),
      html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Expert"), ...heads)),
      html("tbody", {}, ...lines),
    );
  });
}

function shares(counts) {
  const sum = counts.reduce((total, count) => total + count, 0) || 1;
  return counts.map((count) => count / sum);
}

function swatch(expert) {
  const square = html("i", { class: "swatch", "aria-hidden": true });
  square.style.backgroundColor = ofExpert(expert);
  return square;
}

function shareCell(expert, share, most, isServer) {
  const length = html("i", { class: isServer ? "length server" : "length", "aria-hidden": true });
  length.style.width = `${(100 * share) / most}%`;
  length.style.color = ofExpert(expert);
  return html("td", {}, html("span", { class: "track" }, length), html("span", {}, percent(share)));
}
