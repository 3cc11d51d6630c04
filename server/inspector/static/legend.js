// The legend of the colours: experts, which can be shown one at a time, or numbers of experts.

import { ofCount, ofExpert } from "./colours.js";
import { html, plural, swatch } from "./dom.js";
import { MOST_ROWS } from "./load.js";

export const countKeys = (most) =>
  Array.from({ length: most }, (_, i) =>
    html("span", { class: "key" }, swatch(ofCount(i + 1, most)), plural(i + 1, "expert")),
  );

// `counts` has the number of tokens that used each expert. If there are many experts, the most used come first.
export function expertKeys(counts, pressed, onclick) {
  const experts = [...counts.keys()];
  const many = experts.length > MOST_ROWS;
  if (many) experts.sort((a, b) => counts[b] - counts[a]);
  return experts.map((expert) =>
    html(
      "button",
      {
        class: "key",
        id: `expert-${expert}`,
        type: "button",
        "aria-pressed": expert === pressed,
        "aria-label": `Expert ${expert}`,
        title: `Show only this expert: ${plural(counts[expert], "token")} used it`,
        onclick: () => onclick(expert),
      },
      swatch(ofExpert(expert)),
      many ? String(expert) : `Expert ${expert}`,
    ),
  );
}
