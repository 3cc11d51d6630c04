// A picture with its patches laid over it, drawn on the square that the model sees.

import { ofCount, ofExpert } from "./colours.js";
import { byId, html, percent, plural, svg } from "./dom.js";
import { bar, inWords, routed } from "./tokens.js";

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// `moveTo({ row, column })` moves the cursor, which all pictures share; `moveTo(null)` takes it away.
export function stage(run, layer, view, moveTo) {
  const { grid } = run.inspection;
  const patches = patchesOf(run.inspection, layer);
  const picture = html("img", { src: run.picture, alt: "The picture of the question", class: grid.fit });
  const overlay = svg(
    "svg",
    { viewBox: `0 0 ${grid.columns} ${grid.rows}`, preserveAspectRatio: "none", "aria-hidden": true },
    svg("g", { class: "overlay" }, ...patches.map((patch) => drawn(patch, view))),
    svg("rect", { class: "cursor", width: 1, height: 1, visibility: "hidden" }),
  );
  const place = (event) => {
    const box = overlay.getBoundingClientRect();
    return within(grid, {
      row: Math.floor(((event.clientY - box.top) / box.height) * grid.rows),
      column: Math.floor(((event.clientX - box.left) / box.width) * grid.columns),
    });
  };
  const label = `Patches of the picture, routing ${run.name}. ${summary(patches)} Arrow keys go from patch to patch.`;
  return html(
    "div",
    {
      class: "stage",
      id: `stage-${run.name}`,
      tabindex: 0,
      role: "application",
      "aria-label": label,
      onpointermove: (event) => moveTo(place(event)),
      onpointerdown: (event) => moveTo(place(event)),
      onkeydown: (event) => {
        const move = MOVES[event.key];
        if (!move && event.key !== "Escape") return;
        event.preventDefault();
        const { row, column } = view.cursor ?? { row: -move?.[0], column: -move?.[1] };
        moveTo(move ? within(grid, { row: row + move[0], column: column + move[1] }) : null);
      },
    },
    picture,
    overlay,
  );
}

const within = (grid, { row, column }) => ({
  row: Math.min(Math.max(row, 0), grid.rows - 1),
  column: Math.min(Math.max(column, 0), grid.columns - 1),
});

export function patchesOf(inspection, layer) {
  return inspection.tokens.flatMap(({ segment, row, column }, index) =>
    segment === 0 && row !== null
      ? [{ row, column, tail: layer.tail[index], pairs: routed(layer, index) }]
      : [],
  );
}

export function summary(patches) {
  const tail = patches.filter((patch) => patch.tail).length;
  const used = patches.reduce((sum, patch) => sum + patch.pairs.length, 0);
  const mean = (used / patches.length).toFixed(2);
  return `${tail} of ${patches.length} patches are tail tokens (${percent(tail / patches.length)}); ${mean} experts a patch.`;
}

// How two routings of the same picture differ, in words.
export function difference(a, b) {
  const experts = ({ pairs }) => pairs.map(({ expert }) => expert).sort().join();
  const others = a.filter((patch, i) => experts(patch) !== experts(b[i])).length;
  const flags = a.filter((patch, i) => patch.tail !== b[i].tail).length;
  return `From A to B, ${others} of ${a.length} patches use other experts in this layer; ${flags} change between tail and not.`;
}

// Puts the cursor on the patch `at` of a run's picture, and says in `line` what is known of that patch.
export function point(run, layer, at, line) {
  const cursor = byId(`stage-${run.name}`).querySelector(".cursor");
  cursor.setAttribute("visibility", at ? "visible" : "hidden");
  if (!at) {
    line.replaceChildren("Point at a patch to see its experts.");
    return;
  }
  cursor.setAttribute("x", at.column);
  cursor.setAttribute("y", at.row);
  const patch = patchesOf(run.inspection, layer).find((one) => one.row === at.row && one.column === at.column);
  const where = `Row ${at.row + 1}, column ${at.column + 1}: `;
  if (!patch) {
    line.replaceChildren(`${where}the model does not see this patch.`);
    return;
  }
  const kind = html("b", {}, patch.tail ? "tail token" : "not a tail token");
  line.replaceChildren(where, kind, `, ${inWords(patch.pairs)}`, bar(patch.pairs, "experts"));
}

function drawn(patch, view) {
  const { row, column, tail } = patch;
  const shapes = view.colour === "tail" ? spotlight(patch) : fills(patch, view);
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

function fills(patch, view) {
  if (view.colour === "count") return [cell(patch, { fill: ofCount(patch.pairs.length, view.mostExperts) })];
  if (view.expert === null) return [cell(patch, { fill: ofExpert(patch.pairs[0].expert) }), ...weights(patch)];
  const pair = patch.pairs.find(({ expert }) => expert === view.expert);
  if (!pair) return [cell(patch, { class: "dim" })];
  return [cell(patch, { fill: ofExpert(view.expert), "fill-opacity": 0.25 + 0.75 * pair.share })];
}

// The weights of a patch's experts, as a bar at its foot.
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
