// The expert load by modality, of this request and of the server.

import { ofExpert, ofModality } from "./colours.js";
import { html, percent, swatch } from "./dom.js";
import { loadMap, shares } from "./load_map.js";

export const MOST_ROWS = 16; // With more experts, a table shows only the most loaded.

// Counts how many of a request's tokens of a modality used each expert of a layer.
export function countsOf(inspection, layer, experts, modality) {
  const counts = Array(experts).fill(0);
  inspection.tokens.forEach((token, index) => {
    if (token.modality === modality) for (const expert of layer.experts[index]) counts[expert] += 1;
  });
  return counts;
}

// `series` has for each column its name, and the counts of one modality's tokens by layer and expert.
// `onLayer` is called with the index of a layer that the user chooses on a map.
export function loadPart(modality, series, chosen, onLayer) {
  const experts = series[0].counts[chosen].length;
  const maps = experts > MOST_ROWS ? series.map((one) => loadMap(modality, one, chosen, onLayer)) : [];
  return html("div", { class: "load-part" }, table(modality, series, chosen, experts), ...maps);
}

function table(modality, series, chosen, experts) {
  const columns = series.map(({ name, counts }) => ({ name, shares: shares(counts[chosen]) }));
  const most = Math.max(...columns.flatMap((column) => column.shares), 1 / experts);
  const lines = shownExperts(columns, experts).map((expert) =>
    html(
      "tr",
      {},
      html("th", { scope: "row" }, swatch(ofExpert(expert)), String(expert)),
      ...columns.map(({ name, shares }) => shareCell(expert, shares[expert], most, name === "Server", experts)),
    ),
  );
  const heads = columns.map(({ name }) => html("th", { scope: "col" }, name));
  return html(
    "table",
    { class: "load" },
    html("caption", {}, swatch(ofModality(modality)), titleOf(modality, experts)),
    html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "Expert"), ...heads)),
    html("tbody", {}, ...lines),
  );
}

function titleOf(modality, experts) {
  const name = `${modality[0].toUpperCase()}${modality.slice(1)} tokens`;
  return experts > MOST_ROWS ? `${name}: the ${MOST_ROWS} most loaded of ${experts} experts` : name;
}

// Returns all experts by number, or the most loaded of many: by the request's load, then by the server's.
function shownExperts(columns, experts) {
  const all = Array.from({ length: experts }, (_, expert) => expert);
  if (experts <= MOST_ROWS) return all;
  const [first, last] = [columns[0].shares, columns.at(-1).shares];
  return all.sort((a, b) => first[b] - first[a] || last[b] - last[a]).slice(0, MOST_ROWS);
}

function shareCell(expert, share, most, isServer, experts) {
  const length = html("i", { class: isServer ? "length server" : "length", "aria-hidden": true });
  length.style.width = `${(100 * share) / most}%`;
  length.style.color = ofExpert(expert);
  const digits = experts > MOST_ROWS ? 1 : 0;
  return html("td", {}, html("span", { class: "track" }, length), html("span", {}, percent(share, digits)));
}
