// Choosing a picture: one that ships with prismoe, or one of the user's.

import { byId, html } from "./dom.js";
import { get, picture } from "./server.js";

const LARGEST = 20e6; // bytes

const asDataUrl = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

// Fills the page's strip of pictures and keeps the one that is chosen.
export class Pictures {
  constructor(onProblem) {
    this.onProblem = onProblem;
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

  async showBundled() {
    const listed = await get("inspector/pictures/pictures.json");
    byId("pictures").replaceChildren(
      ...listed.map(({ file, name }, index) => thumbnail(`inspector/pictures/${file}`, name, index === 0)),
    );
  }

  async takeOwn(file) {
    if (!file) return;
    if (!file.type.startsWith("image/")) return this.onProblem(`${file.name} is no picture.`);
    if (file.size > LARGEST) return this.onProblem(`${file.name} is over ${LARGEST / 1e6} MB: take a smaller one.`);
    this.onProblem("");
    byId("own")?.remove();
    const own = thumbnail(await asDataUrl(file), file.name, true);
    own.id = "own";
    byId("pictures").append(own);
  }

  // The chosen picture as a data: address.
  async chosen() {
    const address = byId("pictures").querySelector("input:checked").value;
    return address.startsWith("data:") ? address : asDataUrl(await picture(address));
  }
}

const thumbnail = (address, name, checked) =>
  html(
    "label",
    { title: name },
    html("input", { type: "radio", name: "picture", value: address, checked }),
    html("img", { src: address, alt: name }),
  );
