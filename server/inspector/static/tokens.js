// Tokens and the experts they used: in words, as bars, and the text of a request token by token.

import { ofCount, ofExpert } from "./colours.js";
import { html, percent, plural } from "./dom.js";

// What one layer did with the token at `index`: its experts by number, each with its share of the weight.
export function routed(layer, index) {
  const weights = layer.weights[index];
  const sum = weights.reduce((total, weight) => total + weight, 0) || 1;
  return layer.experts[index].map((expert, i) => ({ expert, share: weights[i] / sum }));
}

export const inWords = (pairs) =>
  `${pairs.length === 1 ? "expert" : "experts"} ` +
  pairs.map(({ expert, share }) => `${expert} (${percent(share)})`).join(", ");

export function bar(pairs, colour, most) {
  const parts = [...pairs].sort((a, b) => a.expert - b.expert).map(({ expert, share }) => {
    const part = html("i");
    part.style.flexGrow = share;
    part.style.backgroundColor = colour === "count" ? ofCount(pairs.length, most) : ofExpert(expert);
    return part;
  });
  return html("span", { class: "bar", "aria-hidden": true }, ...parts);
}

// The request's text tokens, with a picture in the place of its patches.
export function textTokens(inspection, layer, view) {
  const prompt = html("ol", { class: "tokens", "aria-label": "Tokens of the prompt" });
  const answer = html("ol", { class: "tokens", "aria-label": "Tokens of the answer" });
  inspection.tokens.forEach((token, index) => {
    const list = index < inspection.prompt_tokens ? prompt : answer;
    if (token.modality === "text") list.append(textToken(token, routed(layer, index), view));
    else if (token.segment !== inspection.tokens[index - 1]?.segment) list.append(pictureToken(inspection));
  });
  const lines = [html("h3", {}, "Prompt"), prompt];
  if (answer.childElementCount) lines.push(html("h3", {}, "Answer, as it was fed back"), answer);
  return html("div", {}, ...lines);
}

function textToken(token, pairs, view) {
  const shown = token.text.replaceAll("\n", "⏎").replace(/^ /, "") || "␣";
  const experts = pairs.map(({ expert }) => expert).sort((a, b) => a - b);
  return html(
    "li",
    { title: `“${token.text}”: ${inWords(pairs)}` },
    html("span", {}, shown),
    bar(pairs, view.colour, view.mostExperts),
    html("small", {}, html("span", { class: "unseen" }, inWords(pairs)), numbers(experts)),
  );
}

const numbers = (experts) => html("span", { "aria-hidden": true }, experts.join(" "));

const pictureToken = (inspection) =>
  html("li", { class: "picture" }, html("span", {}, "picture"), plural(inspection.grid.tokens, "patch token"));
