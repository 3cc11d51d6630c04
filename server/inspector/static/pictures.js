// The choice of a picture: one that ships with prismoe, or the user's own picture, or video if the model takes videos.

import { byId, html } from "./dom.js";
import { get, picture } from "./server.js";

const LARGEST = 20e6; // bytes
const NOUNS = { image: "picture", video: "video" };

const asDataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

// Shows the pictures, and keeps the chosen one.
export class Pictures {
  constructor(onProblem) {
    this.onProblem = onProblem;
    this.modalities = ["image"];
    const [drop, file] = [byId("drop"), byId("file")];
    file.addEventListener("change", () => this.takeOwn(file.files[0]));
    for (const type of ["dragenter", "dragover"])
      drop.addEventListener(type, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    for (const type of ["dragleave", "drop"])
      drop.addEventListener(type, () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      this.takeOwn(event.dataTransfer.files[0]);
    });
  }

  // Sets the modalities that the model takes.
  take(modalities) {
    this.modalities = ["image", "video"].filter((modality) => modalities.includes(modality));
    byId("drop").hidden = !this.modalities.length;
    byId("file").accept = this.modalities.map((modality) => `${modality}/*`).join();
    byId("file-nouns").textContent = this.modalities.map((modality) => NOUNS[modality]).join(" or ");
  }

  async showBundled() {
    const listed = await get("inspector/pictures/pictures.json");
    byId("pictures").replaceChildren(
      ...listed.map(({ file, name }, index) => thumbnail(`inspector/pictures/${file}`, name, index === 0)),
    );
  }

  async takeOwn(file) {
    if (!file) return;
    const modality = this.modalities.find((one) => file.type.startsWith(`${one}/`));
    const nouns = this.modalities.map((one) => NOUNS[one]).join(" or ");
    if (!modality) return this.onProblem(`${file.name} is not a ${nouns}: choose a ${nouns}.`);
    if (file.size > LARGEST)
      return this.onProblem(`${file.name} is larger than ${LARGEST / 1e6} MB: choose a smaller file.`);
    this.onProblem("");
    byId("own")?.remove();
    const own = thumbnail(await asDataUrl(file), file.name, true, modality);
    own.id = "own";
    byId("pictures").append(own);
  }

  // Returns the chosen picture or video as a data URL; an empty one if the model takes neither.
  async chosen() {
    if (!this.modalities.length) return { modality: "text", address: "", title: "" };
    const { value, dataset } = byId("pictures").querySelector("input:checked");
    const address = value.startsWith("data:") ? value : await asDataUrl(await picture(value));
    return { modality: dataset.modality, address, title: dataset.title };
  }
}

const thumbnail = (address, name, checked, modality = "image") =>
  html(
    "label",
    { title: name },
    html("input", {
      type: "radio",
      name: "picture",
      value: address,
      checked,
      "data-modality": modality,
      "data-title": name,
    }),
    modality === "image" ? html("img", { src: address, alt: name }) : html("span", { class: "film" }, `▶ ${name}`),
  );
