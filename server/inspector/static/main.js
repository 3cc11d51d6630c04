// The inspector's page: its state, and the functions that draw the page from it.

import { byId, html } from "./dom.js";
import { countKeys, expertKeys } from "./legend.js";
import { countsOf, loadPart } from "./load.js";
import { difference, layoutOf, patchesOf, summary } from "./patches.js";
import { Pictures } from "./pictures.js";
import { get, inspect, setKey } from "./server.js";
import { point, seen, waiting } from "./stage.js";
import { textTokens } from "./tokens.js";

const MAX_TOKENS = 64;

const server = { model: "", facts: null, layers: [], modalities: [], load: null };
// `tails`: whether a policy distinguishes tail tokens. `mostExperts`: the most experts that a token used.
const view = { layer: 0, colour: "tail", expert: null, cursor: null, tails: true, mostExperts: 1 };
let runs = []; // { name, routing, modality, address, title, answer, inspection }

const pictures = new Pictures(problem);

function problem(message) {
  byId("error").textContent = message;
}

// Shows the user an error's message, and the field for a key if the server requires one.
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
  const { layers, modalities } = routing;
  Object.assign(server, { model: models.data[0].id, facts, layers, modalities });
  view.tails = layers.some(({ policy }) => policy.policy !== "native");
  if (!view.tails) view.colour = "experts";
  byId("colours").hidden = !view.tails;
  pictures.take(modalities);
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
    ? `Give 1 to ${most} experts. An empty field keeps the server's setting.`
    : "The routing in force does not let requests choose numbers of experts.";
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
  const medium = await pictures.chosen();
  const names = byId("compare").checked ? ["A", "B"] : ["A"];
  runs = names.map((name) => ({ name, routing: routingOf(name), ...medium, answer: "", inspection: null }));
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
      view.mostExperts = Math.max(...runs.map(mostExperts));
      draw();
    }
  } finally {
    runs = runs.filter(({ inspection }) => inspection);
    draw();
  }
  server.load = await get("v1/routing/load");
  draw();
}

const mostExperts = ({ inspection }) =>
  (inspection?.layers ?? []).flatMap(({ experts }) => experts).reduce((most, used) => Math.max(most, used.length), 1);

const body = ({ modality, address, routing }) => ({
  model: server.model,
  temperature: 0,
  max_tokens: MAX_TOKENS,
  messages: [
    {
      role: "user",
      content: [
        ...(address ? [{ type: `${modality}_url`, [`${modality}_url`]: { url: address } }] : []),
        { type: "text", text: byId("question").value },
      ],
    },
  ],
  ...(Object.keys(routing).length && { mm_processor_kwargs: { routing } }),
});

function draw() {
  const focused = document.activeElement?.id; // A redrawn element loses the focus.
  const hasInspection = runs.some(({ inspection }) => inspection);
  byId("tools").hidden = !hasInspection;
  byId("legend").hidden = !hasInspection;
  drawLayer();
  drawLegend();
  byId("runs").replaceChildren(...runs.map(drawnRun));
  byId("runs").className = `${runs.length > 1 ? "two" : ""} by-${view.colour}`;
  if (focused) byId(focused)?.focus({ preventScroll: true });
  pointAll();
  drawDifference();
  drawLoad(hasInspection);
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
    if (run.inspection && layoutOf(run.inspection))
      point(run, run.inspection.layers[view.layer], view, byId(`patch-${run.name}`));
}

function drawLayer() {
  const layer = server.layers[view.layer];
  if (!layer) return;
  const { policy, ...settings } = layer.policy;
  const set = Object.entries(settings).filter(([, value]) => value !== null);
  byId("layer-name").textContent = layer.layer;
  byId("layer").setAttribute("aria-valuetext", `Layer ${layer.layer}`);
  const description = set.length
    ? set.map(([name, value]) => `${name} ${value}`).join(", ")
    : `${layer.gate}, ${layer.top_k} of ${layer.experts} experts`;
  byId("policy").textContent = `${policy}: ${description}`;
}

function drawLegend() {
  const { experts } = server.layers[view.layer] ?? {};
  const run = runs.find(({ inspection }) => inspection);
  if (!run) return byId("legend").replaceChildren();
  if (view.colour === "count") return byId("legend").replaceChildren(...countKeys(view.mostExperts));
  const layer = run.inspection.layers[view.layer];
  const counts = Array(experts).fill(0);
  for (const expert of layer.experts.flat()) counts[expert] += 1;
  byId("legend").replaceChildren(...expertKeys(counts, view.expert, pressExpert));
}

function pressExpert(expert) {
  const pressed = view.expert === expert;
  view.expert = pressed ? null : expert;
  if (!pressed) byId("colours").querySelector("[value=experts]").checked = true;
  if (!pressed) view.colour = "experts";
  draw();
}

function drawnRun(run) {
  const answer = html("output", { class: "answer", id: `answer-${run.name}` }, run.answer);
  const heading = html("h2", {}, runs.length > 1 ? html("b", {}, run.name) : "", describedRouting(run.routing));
  const parts = [heading, answer];
  if (run.inspection) parts.push(...drawnRouting(run));
  else if (run.address) parts.push(waiting(run, server.facts.grid));
  return html("article", { id: `run-${run.name}`, "aria-busy": !run.inspection }, ...parts);
}

function drawnRouting(run) {
  const layer = run.inspection.layers[view.layer];
  const moveTo = (place) => {
    if (["frame", "row", "column"].every((name) => place?.[name] === view.cursor?.[name])) return;
    view.cursor = place;
    pointAll();
  };
  const parts = [];
  if (layoutOf(run.inspection))
    parts.push(
      seen(run, layer, view, moveTo),
      html("p", { class: "detail", id: `patch-${run.name}`, "aria-live": "polite" }),
      html("p", { class: "summary" }, summary(patchesOf(run.inspection, layer), view)),
    );
  parts.push(textTokens(run.inspection, layer, view));
  const { left_out: leftOut } = run.inspection;
  if (leftOut) parts.push(html("p", { class: "note" }, `${leftOut} tokens beyond the limit were not recorded.`));
  return parts;
}

function describedRouting({ tail_experts: tail, head_experts: head }) {
  const words = [tail && `tail tokens ${tail}`, head && `other patches ${head}`].filter(Boolean);
  return words.length ? `Experts: ${words.join(", ")}` : "The server's routing";
}

function drawLoad(hasInspection) {
  byId("load").hidden = !hasInspection || !server.load;
  if (byId("load").hidden) return;
  const { modalities, tokens, expert_tokens: ofServer } = server.load;
  const inRuns = new Set(runs.flatMap(({ inspection }) => inspection?.tokens ?? []).map(({ modality }) => modality));
  const present = modalities.filter((modality, at) => tokens[view.layer][at] || inRuns.has(modality));
  const counted = present.map((modality) => {
    const count = tokens[view.layer][modalities.indexOf(modality)];
    return `${count.toLocaleString("en")} ${modality}`;
  });
  byId("load-note").textContent =
    "Each expert's share of this layer's load, in this request and in all tokens that this server has computed: " +
    `${counted.join(", ")} tokens.`;
  byId("load-tables").replaceChildren(
    ...present.map((modality) => {
      const series = runs.filter(({ inspection }) => inspection).map((run) => loadOf(run, modality));
      series.push({ name: "Server", counts: ofServer.map((layer) => layer[modalities.indexOf(modality)]) });
      return loadPart(modality, series, view.layer, chooseLayer);
    }),
  );
}

const loadOf = ({ name, inspection }, modality) => ({
  name: runs.length > 1 ? `Request ${name}` : "This request",
  counts: inspection.layers.map((layer, at) => countsOf(inspection, layer, server.layers[at].experts, modality)),
});

function chooseLayer(place) {
  byId("layer").value = place;
  view.layer = place;
  view.expert = null;
  draw();
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
    chooseLayer(Number(event.target.value));
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
