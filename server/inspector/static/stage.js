// A picture or a video's frames as the model sees them, with their patches and the cursor on top.

import { byId, html, svg } from "./dom.js";
import { drawn, layoutOf, patchesOf, summary } from "./patches.js";
import { bar, inWords } from "./tokens.js";

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// `moveTo({ frame, row, column })` moves the cursor, which all pictures share; `moveTo(null)` hides it.
export function seen(run, layer, view, moveTo) {
  const layout = layoutOf(run.inspection);
  const patches = patchesOf(run.inspection, layer);
  const description = summary(patches, view);
  const frames = Array.from({ length: layout.frames }, (_, frame) =>
    stage(run, { ...layout, frame, description }, patches.filter((patch) => patch.frame === frame), view, moveTo),
  );
  if (layout.frames > 1) return html("div", { class: "seen frames" }, ...frames.map(numbered));
  if (!layout.inOrder) return html("div", { class: "seen" }, ...frames);
  const picture = layout.modality === "image" ? [html("img", { class: "whole", src: run.address, alt: "The picture of the question" })] : [];
  const note = `The places of these ${layout.modality} tokens are unknown, so they are shown in their order, row by row.`;
  return html("div", { class: "seen" }, ...picture, ...frames, html("p", { class: "note" }, note));
}

// Returns what the page shows until the routing arrives.
export function waiting(run, grid) {
  if (run.modality !== "image") return html("div", { class: "seen note" }, run.title);
  const picture = html("img", { src: run.address, alt: "", class: grid?.fit ?? "pad" });
  return html("div", { class: "seen" }, html("div", { class: "stage" }, picture));
}

const numbered = (stage, frame) => html("figure", {}, stage, html("figcaption", {}, `Frame ${frame + 1}`));

const idOf = (run, { frames, frame }) => (frames > 1 ? `stage-${run.name}-${frame + 1}` : `stage-${run.name}`);

function stage(run, layout, patches, view, moveTo) {
  const { modality, frames, frame, rows, columns, inOrder } = layout;
  const overlay = svg(
    "svg",
    { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": true },
    svg("g", { class: "overlay" }, ...drawn(patches, view)),
    svg("rect", { class: "cursor", width: 1, height: 1, visibility: "hidden" }),
  );
  const place = (event) => {
    const box = overlay.getBoundingClientRect();
    return within(layout, {
      row: Math.floor(((event.clientY - box.top) / box.height) * rows),
      column: Math.floor(((event.clientX - box.left) / box.width) * columns),
    });
  };
  const what = frames > 1 ? `frame ${frame + 1} of the video` : modality === "image" ? "the picture" : `the ${modality}`;
  const element = html(
    "div",
    {
      class: "stage",
      id: idOf(run, layout),
      tabindex: 0,
      role: "application",
      "aria-label": `Patches of ${what}, routing ${run.name}. ${layout.description} Arrow keys move from patch to patch.`,
      onpointermove: (event) => moveTo(place(event)),
      onpointerdown: (event) => moveTo(place(event)),
      onkeydown: (event) => {
        const move = MOVES[event.key];
        if (!move && event.key !== "Escape") return;
        event.preventDefault();
        const { row, column } = view.cursor?.frame === frame ? view.cursor : { row: -move?.[0], column: -move?.[1] };
        moveTo(move ? within(layout, { row: row + move[0], column: column + move[1] }) : null);
      },
    },
    ...(modality === "image" && !inOrder ? [picture(run)] : []),
    overlay,
  );
  element.style.setProperty("--aspect", columns / rows);
  return element;
}

// Models without one grid for all pictures see the whole picture, in nearly its own shape.
const picture = (run) =>
  html("img", { src: run.address, alt: "The picture of the question", class: run.inspection.grid?.fit ?? "stretch" });

const within = ({ frame, rows, columns }, { row, column }) => ({
  frame,
  row: Math.min(Math.max(row, 0), rows - 1),
  column: Math.min(Math.max(column, 0), columns - 1),
});

// Shows the cursor on the pictures of a run, and describes the patch under it in the element `line`.
export function point(run, layer, view, line) {
  const layout = layoutOf(run.inspection);
  const at = view.cursor;
  for (const cursor of byId(`run-${run.name}`).querySelectorAll(".cursor")) cursor.setAttribute("visibility", "hidden");
  if (!at) {
    line.replaceChildren("Point at a patch to see its experts.");
    return;
  }
  const cursor = byId(idOf(run, { ...layout, frame: at.frame })).querySelector(".cursor");
  cursor.setAttribute("visibility", "visible");
  cursor.setAttribute("x", at.column);
  cursor.setAttribute("y", at.row);
  const patch = patchesOf(run.inspection, layer).find(
    (one) => one.frame === at.frame && one.row === at.row && one.column === at.column,
  );
  const where = `${placeInWords(layout, at)}: `;
  if (!patch) {
    line.replaceChildren(`${where}the model does not see this patch.`);
    return;
  }
  const kind = view.tails ? [html("b", {}, patch.tail ? "tail token" : "not a tail token"), ", "] : [];
  line.replaceChildren(where, ...kind, inWords(patch.pairs), bar(patch.pairs, "experts"));
}

function placeInWords({ frames, columns, inOrder }, { frame, row, column }) {
  if (inOrder) return `Token ${row * columns + column + 1}`;
  const place = `ow ${row + 1}, column ${column + 1}`;
  return frames > 1 ? `Frame ${frame + 1}, r${place}` : `R${place}`;
}
