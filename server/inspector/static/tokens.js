// Tokens and the experts that they used: in words, as bars, and for each token of a request's text.

import { ofCount, ofExpert, ofModality } from "./colours.js";
import { html, percent, plural } from "./dom.js";

const MOST_NUMBERS = 4;

// Returns the experts of the token at `index` in a layer, the best first, each with its share of the weight.
// If the weights are unknown, the shares are equal.
export function routed(layer, index) {
  const experts = layer.experts[index];
  const weights = layer.weights?.[index] ?? experts.map(() => 1);
  const sum = weights.reduce((total, weight) => total + weight, 0) || 1;
  return experts.map((expert, i) => ({ expert, share: weights[i] / sum, isKnown: layer.weights !== null }));
}

export function inWords(pairs) {
  if (!pairs.length) return "no expert";
  const each = pairs.map(({ expert, share, isKnown }) => (isKnown ? `${expert} (${percent(share)})` : expert));
  return `${pairs.length === 1 ? "expert" : "experts"} ${each.join(", ")}`;
}

export function bar(pairs, colour, most) {
  const parts = [...pairs].sort((a, b) => a.expert - b.expert).map(({ expert, share }) => {
    const part = html("i");
    part.style.flexGrow = share;
    part.style.backgroundColor = colour === "count" ? ofCount(pairs.length, most) : ofExpert(expert);
    return part;
  });
  return html("span", { class: "bar", "aria-hidden": true }, ...parts);
}

// Lists the request's text tokens. One item stands for all tokens of a picture, a video's frame or a sound.
export function textTokens(inspection, layer, view) {
  const prompt = html("ol", { class: "tokens", "aria-label": "Tokens of the prompt" });
  const answer = html("ol", { class: "tokens", "aria-label": "Tokens of the answer" });
  inspection.tokens.forEach((token, index) => {
    const list = index < inspection.prompt_tokens ? prompt : answer;
    if (token.modality === "text") list.append(textToken(token, routed(layer, index), view));
    else if (token.segment !== inspection.tokens[index - 1]?.segment) list.append(mediaTokens(inspection, index));
  });
  const lines = [html("h3", {}, "Prompt"), prompt];
  if (answer.childElementCount) lines.push(html("h3", {}, "Answer, without its last token"), answer);
  return html("div", {}, ...lines);
}

function textToken(token, pairs, view) {
  const shown = token.text.replaceAll("\n", "⏎").replace(/^ /, "") || "␣";
  return html(
    "li",
    { title: `“${token.text}”: ${inWords(pairs)}` },
    html("span", {}, shown),
    bar(pairs, view.colour, view.mostExperts),
    html("small", {}, html("span", { class: "unseen" }, inWords(pairs)), numbers(pairs.map(({ expert }) => expert))),
  );
}

// Returns the numbers of the experts; of many only the best.
function numbers(experts) {
  const few = experts.length <= MOST_NUMBERS;
  const shown = few ? [...experts].sort((a, b) => a - b) : [...experts.slice(0, 2), `+${experts.length - 2}`];
  return html("span", { "aria-hidden": true }, shown.join(" "));
}

// Returns an item for the tokens from `start` on that belong to the same picture, video frame or sound.
function mediaTokens({ tokens }, start) {
  const { segment, modality } = tokens[start];
  const end = tokens.findIndex((token, index) => index > start && token.segment !== segment);
  const count = (end < 0 ? tokens.length : end) - start;
  const item = html("li", { class: "media" }, html("span", {}, modality), plural(count, "token"));
  item.style.borderColor = ofModality(modality);
  return item;
}
