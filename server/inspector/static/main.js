// The inspector's page: its state, and everything on it drawn from that.

import { ofCount, ofExpert } from "./colours.js";
import { byId, html } from "./dom.js";
import { countsOf, loadTables } from "./load.js";
import { difference, patchesOf, point, stage, summary } from "./patches.js";
import { Pictures } from "./pictures.js";
import { get, inspect, setKey } from "./server.js";
import { textTokens } from "./tokens.js";

const MAX_TOKENS = 64;

const server = { model: "", facts: null, layers: [], load: null };
const view = { layer: 0, colour: "tail", expert: null, cursor: null, mostExperts: 1 };
let runs = []; // { name, routing, picture, answer, inspection }

const pictures = new Pictures(problem);

function problem(message) {
  byId("error").textContent = message;
}

// Tells the user what went wrong, and asks for a key where the server wants one.
async function attempt(work) {
  problem("");
  try {
    await work();
  } catch (error) {
    if (error.status === 401) byId("key-field").hidden = false;
    problem(error.message);
  }
}

async function start() {
  const [models, facts, routing] = await Promise.all(
    ["v1/models", "v1/routing/inspect", "v1/routing"].map(get),
  );
  Object.assign(server, { model: models.data[0].id, facts, layers: routing.layers });
  view.mostExperts = Math.max(1, ...server.layers.map(({ experts }) => experts));
  byId("model").textContent = server.model;
  const last = Math.max(0, server.layers.length - 1);
  Object.assign(byId("layer"), { max: last, disabled: last === 0 });
  drawRoutingFields();
  byId("submit").disabled = Boolean(facts.refusal);
  if (facts.refusal) problem(facts.refusal);
}

function drawRoutingFields() {
  const most = server.facts.request_experts;
  const plain = Math.min(server.layers[0]?.policy.top_k ?? 1, most || 1);
  byId("routing-a").replaceChildren(...numberFields("A", most, "", ""));
  byId("routing-b").replaceChildren(...numberFields("B", most, plain, plain));
  byId("routing").disabled = most === 0;
  byId("routing-note").textContent = most
    ? `1 to ${most}; left empty, as the server is set.`
    : "The policy in force takes no numbers from requests.";
}

const numberFields = (name, most, tail, head) => [
  html("b", {}, name),
  numberField(`tail-${name}`, "tail tokens", most, tail),
  numberField(`head-${name}`, "other patches", most, head),
];

const numberField = (id, label, most, value) =>
  html("label", {}, html("input", { id, type: "number", min: 1, max: most, value, placeholder: "–" }), label);

function routingOf(name) {
  const number = (id) => (byId(id).value === "" ? {} : { [`${id.split("-")[0]}_experts`]: Number(byId(id).value) });
  return { ...number(`tail-${name}`), ...number(`head-${name}`) };
}

async function ask() {
  if (!server.facts) await start();
  const picture = await pictures.chosen();
  const names = byId("compare").checked ? ["A", "B"] : ["A"];
  runs = names.map((name) => ({ name, routing: routingOf(name), picture, answer: "", inspection: null }));
  view.cursor = null;
  draw();
  const { top } = byId("view").getBoundingClientRect();
  if (top > innerHeight / 2) byId("view").scrollIntoView();
  try {
    for (const run of runs) {
      run.inspection = await inspect(body(run), (text) => {
        run.answer += text;
        byId(`answer-${run.name}`).textContent = run.answer;
      });
      draw();
    }
  } finally {
    runs = runs.filter(({ inspection }) => inspection);
    draw();
  }
  server.load = await get("v1/routing/load");
  draw();
}

const body = ({ picture, routing }) => ({
  model: server.model,
  temperature: 0,
  max_tokens: MAX_TOKENS,
  messages: [
    {
      role: "user",
      content: [
        { type: "image_url", image_url: { url: picture } },
        { type: "text", text: byId("question").value },
      ],
    },
  ],
  ...(Object.keys(routing).length && { mm_processor_kwargs: { routing } }),
});

function draw() {
  const focused = document.activeElement?.id; // what is drawn anew loses the focus
  const told = runs.some(({ inspection }) => inspection);
  byId("tools").hidden = !told;
  byId("legend").hidden = !told;
  drawLayer();
  drawLegend();
  byId("runs").replaceChildren(...runs.map(drawnRun));
  byId("runs").className = `${runs.length > 1 ? "two" : ""} by-${view.colour}`;
  if (focused) byId(focused)?.focus({ preventScroll: true });
  pointAll();
  drawDifference();
  drawLoad(told);
}

function drawDifference() {
  const both = runs.length > 1 && runs.every(({ inspection }) => inspection);
  byId("difference").hidden = !both;
  if (!both) return;
  const [a, b] = runs.map(({ inspection }) => patchesOf(inspection, inspection.layers[view.layer]));
  byId("difference").textContent = difference(a, b);
}

function pointAll() {
  for (const run of runs)
    if (run.inspection)
      point(run, run.inspection.layers[view.layer], view.cursor, byId(`patch-${run.name}`));
}

function drawLayer() {
  const layer = server.layers[view.layer];
  if (!layer) return;
  const { policy, ...settings } = layer.policy;
  const said = Object.entries(settings).filter(([, value]) => value !== null);
  byId("layer-name").textContent = layer.layer;
  byId("layer").setAttribute("aria-valuetext", `Layer ${layer.layer}`);
  byId("policy").textContent = `${policy}: ${said.map(([name, value]) => `${name} ${value}`).join(", ")}`;
}

// Experts can be looked at one by one; numbers of experts are only named.
function drawLegend() {
  const experts = server.layers[view.layer]?.experts ?? 0;
  byId("legend").replaceChildren(
    ...Array.from({ length: experts }, (_, i) => (view.colour === "count" ? countKey(i + 1) : expertKey(i))),
  );
}

function countKey(count) {
  return html("span", { class: "key" }, swatch(ofCount(count, view.mostExperts)), count === 1 ? "1 expert" : `${count} experts`);
}

function expertKey(expert) {
  const pressed = view.expert === expert;
  const onclick = () => {
    view.expert = pressed ? null : expert;
    if (!pressed) byId("colours").querySelector("[value=experts]").checked = true;
    view.colour = byId("colours").querySelector(":checked").value;
    draw();
  };
  return html(
    "button",
    { class: "key", id: `expert-${expert}`, type: "button", "aria-pressed": pressed, title: "Show this expert alone", onclick },
    swatch(ofExpert(expert)),
    `Expert ${expert}`,
  );
}

function swatch(colour) {
  const square = html("i", { class: "swatch", "aria-hidden": true });
  square.style.backgroundColor = colour;
  return square;
}

function drawnRun(run) {
  const answer = html("output", { class: "answer", id: `answer-${run.name}` }, run.answer);
  const heading = html("h2", {}, runs.length > 1 ? html("b", {}, run.name) : "", asked(run.routing));
  const parts = [heading, answer];
  if (run.inspection) parts.push(...drawnRouting(run));
  else parts.push(html("div", { class: "stage waiting" }, html("img", { src: run.picture, alt: "", class: server.facts.grid.fit })));
  return html("article", { id: `run-${run.name}`, "aria-busy": !run.inspection }, ...parts);
}

function drawnRouting(run) {
  const layer = run.inspection.layers[view.layer];
  const moveTo = (place) => {
    if (place?.row === view.cursor?.row && place?.column === view.cursor?.column) return;
    view.cursor = place;
    pointAll();
  };
  const parts = [
    stage(run, layer, view, moveTo),
    html("p", { class: "detail", id: `patch-${run.name}`, "aria-live": "polite" }),
    html("p", { class: "summary" }, summary(patchesOf(run.inspection, layer))),
    textTokens(run.inspection, layer, view),
  ];
  const { left_out: leftOut } = run.inspection;
  if (leftOut) parts.push(html("p", { class: "note" }, `${leftOut} tokens beyond the limit were not recorded.`));
  return parts;
}

function asked({ tail_experts: tail, head_experts: head }) {
  const words = [tail && `tail tokens ${tail}`, head && `other patches ${head}`].filter(Boolean);
  return words.length ? `Experts: ${words.join(", ")}` : "As the server routes";
}

function drawLoad(told) {
  byId("load").hidden = !told || !server.load;
  if (byId("load").hidden) return;
  const { experts } = server.layers[view.layer];
  const series = runs
    .filter(({ inspection }) => inspection)
    .map(({ name, inspection }) => ({
      name: runs.length > 1 ? `Request ${name}` : "This request",
      counts: countsOf(inspection, inspection.layers[view.layer], experts),
    }));
  series.push({ name: "Server", counts: server.load.expert_tokens[view.layer] });
  const [text, vision] = server.load.tokens[view.layer].map((count) => count.toLocaleString("en"));
  byId("load-note").textContent =
    `How the choices of experts are shared in this layer, beside all that this server has computed: ` +
    `${text} text and ${vision} vision tokens.`;
  byId("load-tables").replaceChildren(...loadTables(series, experts));
}

function listen() {
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("submit").disabled = true;
    attempt(ask).finally(() => (byId("submit").disabled = Boolean(server.facts?.refusal)));
  });
  byId("compare").addEventListener("change", (event) => (byId("routing-b").hidden = !event.target.checked));
  byId("key").addEventListener("change", (event) => {
    setKey(event.target.value);
    attempt(start);
  });
  byId("layer").addEventListener("input", (event) => {
    view.layer = Number(event.target.value);
    view.expert = null;
    draw();
  });
  byId("strength").addEventListener("input", (event) => {
    byId("runs").style.setProperty("--strength", `${event.target.value}%`);
  });
  byId("colours").addEventListener("change", (event) => {
    view.colour = event.target.value;
    view.expert = null;
    draw();
  });
}

listen();
attempt(() => pictures.showBundled().then(start));
