// Colours that colour-blind people can distinguish. The page also shows numbers where there is room.

// Okabe and Ito's palette, with grey instead of black.
const EXPERTS = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#f0e442", "#999999"];

// Cividis, from few to many.
const COUNTS = ["#123570", "#575d6d", "#8a8779", "#c4b56c", "#fee838"];

const MODALITIES = { text: "#56b4e9", image: "#e69f00", video: "#cc79a7", audio: "#009e73" };

const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

export const ofModality = (modality) => MODALITIES[modality];

function mixed(from, to, share) {
  const [a, b] = [channels(from), channels(to)];
  return `rgb(${a.map((value, i) => Math.round(value + (b[i] - value) * share)).join(" ")})`;
}

// After eight experts the colours repeat: first lighter, then darker.
export function ofExpert(expert) {
  const colour = EXPERTS[expert % EXPERTS.length];
  const round = Math.floor(expert / EXPERTS.length) % 3;
  return round === 0 ? colour : mixed(colour, round === 1 ? "#ffffff" : "#000000", 0.45);
}

export function ofCount(count, most) {
  return ofShare(most === 1 ? 0 : (count - 1) / (most - 1));
}

// `share` is from 0 to 1.
export function ofShare(share) {
  const place = share * (COUNTS.length - 1);
  const low = Math.min(Math.floor(place), COUNTS.length - 2);
  return mixed(COUNTS[low], COUNTS[low + 1], place - low);
}
