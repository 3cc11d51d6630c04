// The tokens of a picture, a video or a sound: their places, their experts, and how they are drawn.

import { ofCount, ofExpert } from "./colours.js";
import { percent, plural, svg } from "./dom.js";
import { routed } from "./tokens.js";

const IN_ORDER_COLUMNS = 32;
const MOST_WITH_WEIGHTS = 600; // With more patches, the bars of weights are too small to see.

const tokensOf = ({ tokens }) => tokens.filter(({ segment }) => segment === 0);

// Returns the layout of the tokens of the request's first medium: their places on it, or rows in their order if
// the places are unknown. Returns null for a request without media.
export function layoutOf(inspection) {
  const [medium] = inspection.media;
  if (!medium) return null;
  const { modality, frames, rows, columns } = medium;
  if (rows !== null) return { modality, frames, rows, columns, inOrder: false };
  const count = tokensOf(inspection).length;
  const width = Math.max(1, Math.min(count, IN_ORDER_COLUMNS));
  return { modality, frames: 1, rows: Math.ceil(count / width), columns: width, inOrder: true };
}

export function patchesOf(inspection, layer) {
  const layout = layoutOf(inspection);
  let order = 0;
  return inspection.tokens.flatMap((token, index) => {
    if (token.segment !== 0) return [];
    const place = layout.inOrder ? inOrder(order++, layout) : token;
    if (place.row === null) return [];
    const { frame, row, column } = place;
    return [{ frame, row, column, tail: layer.tail[index], pairs: routed(layer, index) }];
  });
}

const inOrder = (token, { columns }) => ({
  frame: 0,
  row: Math.floor(token / columns),
  column: token % columns,
});

export function summary(patches, view) {
  const tail = patches.filter((patch) => patch.tail).length;
  const mean = (patches.reduce((sum, patch) => sum + patch.pairs.length, 0) / patches.length).toFixed(2);
  if (view.tails)
    return `${tail} of ${patches.length} patches are tail tokens (${percent(tail / patches.length)}); ${mean} experts a patch.`;
  const used = new Set(patches.flatMap(({ pairs }) => pairs.map(({ expert }) => expert)));
  const without = patches.filter(({ pairs }) => !pairs.length).length;
  const ofLayer = `${plural(used.size, "expert")} used in this layer${without ? `, none by ${plural(without, "token")}` : ""}`;
  return `${plural(patches.length, "token")}, ${mean} experts each; ${ofLayer}.`;
}

// Returns a sentence about the differences between two routings of the same picture.
export function difference(a, b) {
  const experts = ({ pairs }) => pairs.map(({ expert }) => expert).sort().join();
  const others = a.filter((patch, i) => experts(patch) !== experts(b[i])).length;
  const flags = a.filter((patch, i) => patch.tail !== b[i].tail).length;
  return `From A to B, ${others} of ${a.length} patches use other experts in this layer; ${flags} are tail tokens in only one.`;
}

export function drawn(patches, view) {
  const withWeights = patches.length <= MOST_WITH_WEIGHTS;
  return patches.map((patch) => drawnPatch(patch, view, withWeights));
}

function drawnPatch(patch, view, withWeights) {
  const { row, column, tail } = patch;
  const shapes = view.colour === "tail" ? spotlight(patch) : fills(patch, view, withWeights);
  const label = `${tail ? "tail" : ""} ${plural(patch.pairs.length, "expert")}`.trim();
  return svg(
    "g",
    { class: tail ? "tail" : "head", "data-row": row, "data-column": column, "data-label": label },
    ...shapes,
    ...(tail ? [svg("rect", { class: "ring", x: column + 0.03, y: row + 0.03, width: 0.94, height: 0.94 })] : []),
  );
}

// Tail tokens stay clear; the others are dimmed.
const spotlight = ({ row, column, tail }) =>
  tail ? [] : [cell({ row, column }, { class: "dim" })];

function fills(patch, view, withWeights) {
  if (!patch.pairs.length) return [cell(patch, { class: "dim" })];
  if (view.colour === "count") return [cell(patch, { fill: ofCount(patch.pairs.length, view.mostExperts) })];
  if (view.expert === null) {
    const best = cell(patch, { fill: ofExpert(patch.pairs[0].expert) });
    return withWeights ? [best, ...weights(patch)] : [best];
  }
  const pair = patch.pairs.find(({ expert }) => expert === view.expert);
  if (!pair) return [cell(patch, { class: "dim" })];
  return [cell(patch, { fill: ofExpert(view.expert), "fill-opacity": 0.25 + 0.75 * pair.share })];
}

// Draws the weights of a patch's experts as a bar at its bottom.
function weights({ row, column, pairs }) {
  let x = column;
  return [...pairs]
    .sort((a, b) => a.expert - b.expert)
    .map(({ expert, share }) => {
      const part = svg("rect", { x, y: row + 0.8, width: share, height: 0.2, fill: ofExpert(expert) });
      x += share;
      return part;
    });
}

const cell = ({ row, column }, attributes) =>
  svg("rect", { class: "wash", x: column, y: row, width: 1, height: 1, ...attributes });
