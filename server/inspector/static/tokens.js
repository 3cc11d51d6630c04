// Tokens and the experts they used: in words, as bars, and the text of a request token by token.

import { ofCount, ofExpert, ofModality } from "./colours.js";
import { html, percent, plural } from "./dom.js";

const MOST_NUMBERS = 4;

// What one layer did with the token at `index`: its experts, best first, each with its share of the weight.
// Where the weights are not told, the shares are equal.
export function routed(layer, index) {
  const experts = layer.experts[index];
  const weights = layer.weights?.[index] ?? experts.map(() => 1);
  const sum = weights.reduce((total, weight) => total + weight, 0) || 1;
  return experts.map((expert, i) => ({ expert, share: weights[i] / sum, told: layer.weights !== null }));
}

export function inWords(pairs) {
  if (!pairs.length) return "no expert";
  const each = pairs.map(({ expert, share, told }) => (told ? `${expert} (${percent(share)})` : expert));
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

// The request's text tokens, with a picture, a video's frame or a sound in the place of its tokens.
export function textTokens(inspection, layer, view) {
  const prompt = html("ol", { class: "tokens", "aria-label": "Tokens of the prompt" });
  const answer = html("ol", { class: "tokens", "aria-label": "Tokens of the answer" });
  inspection.tokens.forEach((token, index) => {
    const list = index < inspection.prompt_tokens ? prompt : answer;
    if (token.modality === "text") list.append(textToken(token, routed(layer, index), view));
    else if (token.segment !== inspection.tokens[index - 1]?.segment) list.append(mediaTokens(inspection, index));
  });
  const lines = [html("h3", {}, "Prompt"), prompt];
  if (answer.childElementCount) lines.push(html("h3", {}, "Answer, as it was fed back"), answer);
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

// Of many experts the best ones alone.
function numbers(experts) {
  const few = experts.length <= MOST_NUMBERS;
  const shown = few ? [...experts].sort((a, b) => a - b) : [...experts.slice(0, 2), `+${experts.length - 2}`];
  return html("span", { "aria-hidden": true }, shown.join(" "));
}

// The tokens from `start` on that are of the same picture, video or sound.
function mediaTokens({ tokens }, start) {
  const { segment, modality } = tokens[start];
  const end = tokens.findIndex((token, index) => index > start && token.segment !== segment);
  const count = (end < 0 ? tokens.length : end) - start;
  const item = html("li", { class: "media" }, html("span", {}, modality), plural(count, "token"));
  item.style.borderColor = ofModality(modality);
  return item;
}
