"""Reads a Dockerfile's instructions, as far as this repository's own ones go."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

VARIABLE = re.compile(r"\$(\w+)|\$\{(\w+)\}")


@dataclass
class Stage:
    """What follows one FROM. `base` is an image, or the name of an earlier stage."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, keyword: str) -> str:
        """The value of the stage's last such instruction."""
        return [value for found, value in self.instructions if found == keyword][-1]


def stages(dockerfile: Path) -> list[Stage]:
    """The stages in their order. ARGs above the first FROM are put into its base."""
    found: list[Stage] = []
    arguments: dict[str, str] = {}
    for keyword, value in _instructions(dockerfile.read_text()):
        if keyword == "FROM":
            base, _, name = expand(value, arguments).partition(" AS ")
            found.append(Stage(base, name))
        elif found:
            found[-1].instructions.append((keyword, value))
        else:
            arguments |= assignments(value)
    return found


def assignments(value: str) -> dict[str, str]:
    """The pairs of an ENV, ARG or LABEL. Quotes are taken off."""
    pairs = re.findall(r'([\w.]+)=("[^"]*"|\S*)', value)
    return {name: text.strip('"') for name, text in pairs}


def expand(value: str, variables: Mapping[str, str]) -> str:
    """`value` with $NAME and ${NAME} replaced."""
    return VARIABLE.sub(lambda match: variables.get(match[1] or match[2], ""), value)


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = (line.split(None, 1) for line in joined.splitlines() if line.strip())
    return [(keyword, " ".join(value.split()) if keyword != "RUN" else value) for keyword, value in parts]
