"""The pictures: emoji in eight styles, fetched from npm and rendered once to RGBA arrays.

A *style* is one set of drawings; a *family* is the styles that share their drawings (a 3D render and its
flat twin), and a split never divides it. A *drawing* is one emoji in one style.
"""

import argparse
import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

SIDE = 96  # pixels of a cached drawing
GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
LEFT_OUT = re.compile(r"clock\d+")  # 24 clock faces


@dataclass(frozen=True)
class Style:
    """One npm package of drawings."""

    name: str
    package: str
    version: str
    family: str
    licence: str
    credit: str


STYLES = (
    Style("noto", "emoji-datasource-google", "16.0.0", "noto", "Apache-2.0", "Noto Emoji, Google"),
    Style("noto-v1", "@iconify-json/noto-v1", "1.2.5", "noto", "Apache-2.0", "Noto Emoji v1, Google"),
    Style("fluent-3d", "@lobehub/fluent-emoji-3d", "1.1.0", "fluent", "MIT", "Fluent Emoji, Microsoft"),
    Style(
        "fluent-flat", "@iconify-json/fluent-emoji-flat", "1.2.6", "fluent", "MIT", "Fluent Emoji, Microsoft"
    ),
    Style("emojione", "@iconify-json/emojione", "1.2.3", "emojione", "CC-BY-4.0", "Emoji One, JoyPixels"),
    Style("fxemoji", "@iconify-json/fxemoji", "1.2.2", "fxemoji", "Apache-2.0", "FxEmojis, Mozilla"),
    Style(
        "streamline",
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "streamline",
        "CC-BY-4.0",
        "Streamline Emojis",
    ),
    Style(
        "twemoji", "emoji-datasource-twitter", "16.0.0", "twemoji", "CC-BY-4.0", "Twemoji, Twitter and others"
    ),
)
STYLE_BY_NAME = {style.name: style for style in STYLES}
UNSEEN_FAMILY = "twemoji"  # never trained on


@dataclass(frozen=True)
class Drawing:
    """One emoji in one style. `emoji` is emoji-datasource's short name, `source` the icon or file it came
    from.
    """

    emoji: str
    style: str
    source: str

    @property
    def family(self) -> str:
        """The styles that share this drawing."""
        return STYLE_BY_NAME[self.style].family


class Pictures:
    """The fetched packages, and the drawings that are rendered from them."""

    def __init__(self, folder: Path) -> None:
        """Use `folder` for the packages and for the rendered arrays."""
        self.folder = folder
        self.modules = folder / "node_modules"

    def fetch(self) -> None:
        """Install the packages, pinned, without running any script of theirs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        wanted = [f"{style.package}@{style.version}" for style in STYLES]
        if all((self.modules / style.package / "package.json").exists() for style in STYLES):
            return
        command = [
            "npm",
            "install",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--prefix",
            str(self.folder),
        ]
        subprocess.run([*command, *wanted], check=True, stdout=subprocess.DEVNULL)

    @cached_property
    def emoji(self) -> list[dict[str, Any]]:
        """Unicode's concrete emoji, as emoji-datasource describes them."""
        entries = self._json("emoji-datasource-google", "emoji.json")
        return [e for e in entries if e["category"] in GROUPS and not LEFT_OUT.fullmatch(e["short_name"])]

    def drawings(self) -> Iterator[Drawing]:
        """Every drawing of every concrete emoji, style by style."""
        for style in STYLES:
            for entry in self.emoji:
                for source in self._sources(style, entry):
                    yield Drawing(entry["short_name"], style.name, source)

    def render(self, drawing: Drawing, side: int) -> NDArray[np.uint8]:
        """The drawing as an RGBA array `[side, side, 4]`, centred on a transparent square."""
        package = self.modules / STYLE_BY_NAME[drawing.style].package
        if drawing.style in self._icons:
            icons = self._icons[drawing.style]
            icon = icons["icons"][drawing.source]
            width, height = (icon.get(key, icons.get(key, 16)) for key in ("width", "height"))
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
            )
            data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side * 2, height=side * 2))
        else:
            data = (package / drawing.source).read_bytes()
        image = Image.open(io.BytesIO(data)).convert("RGBA")
        square = Image.new("RGBA", (max(image.size),) * 2)
        square.paste(image, ((square.width - image.width) // 2, (square.height - image.height) // 2))
        return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))

    def load(self) -> tuple[list[Drawing], NDArray[np.uint8]]:
        """All drawings and their pixels `[N, SIDE, SIDE, 4]`, rendered on the first call."""
        index, pixels = self.folder / "drawings.json", self.folder / "drawings.npy"
        if not index.exists():
            drawings = list(self.drawings())
            np.save(pixels, np.stack([self.render(d, SIDE) for d in tqdm(drawings, desc="render")]))
            index.write_text(json.dumps([asdict(d) for d in drawings]))
        return [Drawing(**d) for d in json.loads(index.read_text())], np.load(pixels)

    def _json(self, package: str, name: str) -> Any:
        return json.loads((self.modules / package / name).read_text())

    @cached_property
    def _icons(self) -> dict[str, dict[str, Any]]:
        styles = [style for style in STYLES if style.package.startswith("@iconify-json/")]
        return {style.name: self._json(style.package, "icons.json") for style in styles}

    @cached_property
    def _icon_names(self) -> dict[str, dict[str, list[str]]]:
        """For each icon set: squeezed name → icons; a set may have several drawings of a thing
        ("cactus-1").
        """
        names: dict[str, dict[str, list[str]]] = {}
        for style, icons in self._icons.items():
            known = names.setdefault(style, {})
            for icon in icons["icons"]:
                known.setdefault(_squeeze(icon), []).append(icon)
        return names

    @cached_property
    def _unicode_names(self) -> dict[str, str]:
        """Code points → the current Unicode name, from the set that ships that table."""
        return dict(self._json("@iconify-json/fluent-emoji-flat", "chars.json"))

    def _sources(self, style: Style, entry: dict[str, Any]) -> list[str]:
        """Where `style` keeps the emoji: files within its package, or names of icons."""
        code = entry["unified"].lower()
        bare = "-".join(part for part in code.split("-") if part != "fe0f")
        unicode_name = self._unicode_names.get(code) or self._unicode_names.get(bare)
        if style.package.startswith("emoji-datasource"):
            folder = style.package.removeprefix("emoji-datasource-")
            return [f"img/{folder}/64/{entry['image']}"] if entry[f"has_img_{folder}"] else []
        if style.name == "fluent-3d":
            files = (f"assets/{name}.webp" for name in (code, bare))
            return [file for file in files if (self.modules / style.package / file).exists()][:1]
        if style.name == "fluent-flat":
            return [unicode_name] if unicode_name else []
        known = self._icon_names[style.name]
        for name in (unicode_name, entry["name"], *entry["short_names"]):
            for form in (_squeeze(name or ""), _squeeze(f"{name}-face")):
                if form in known:
                    return known[form]
        return []


def _squeeze(name: str) -> str:
    """Lower-case letters and digits alone, less the number of a variant: `Cactus-2` → `cactus`."""
    return re.sub(r"-[1-5]$|[^a-z0-9]", "", name.lower())


def fetched_pictures(description: str | None) -> Pictures:
    """The fetched pictures, for a program that has no other option than where they are."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cache", type=Path, default=Path(".cache"), help="folder of the fetched pictures (default: .cache)"
    )
    pictures = Pictures(parser.parse_args().cache / "emoji")
    pictures.fetch()
    return pictures
