"""Prints docs/reference/policies.md, generated from the policies' classes (`make reference`)."""

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

from prismoe.model_plugins.routing.policy import RoutingPolicy
from prismoe.model_plugins.routing.registry import POLICIES

START = """\
# Policies

`make reference` generates this page from the [policies' classes](../../model_plugins/routing/policies): the
settings in `--routing` for each `policy`. [Routers](../routers.md#the-policies) has the papers, the rules,
and the tensors that a checkpoint must hold. The default "the model's" means the model's own number of experts
per token, or whether its gate renormalises.
"""


def page() -> str:
    """The text of the page."""
    return START + "".join(f"\n{part}" for name in POLICIES for part in _policy(name, POLICIES[name]))


def _policy(name: str, kind: type[RoutingPolicy]) -> Iterator[str]:
    yield f"## {name}\n"
    [source] = re.findall(r"^`\w+`: (.+)$", sys.modules[kind.__module__].__doc__ or "", re.S)
    yield f"{source[0].upper()}{' '.join(source[1:].split())}\n"
    yield f"{' '.join((kind.__doc__ or '').split())}\n"
    yield "\n".join(f"- {need}" for need in _needs(kind)) + "\n"
    schema = kind.model_json_schema()
    fields = {field: about for field, about in schema["properties"].items() if field != "policy"}
    if not fields:
        yield "It has no settings.\n"
        return
    rows = ["| setting | value | default |", "| --- | --- | --- |"]
    for field, about in fields.items():
        default = "the model's" if field in schema.get("required", ()) else f"`{_json(about.get('default'))}`"
        rows.append(f"| `{field}` | {_value(about, schema.get('$defs', {}))} | {default} |")
    yield "\n".join(rows) + "\n"


def _needs(kind: type[RoutingPolicy]) -> Iterator[str]:
    any_gate = "[any gate](../routers.md#under-a-models-own-gate)"
    yield f"Works under {any_gate}." if kind.takes_any_gate else "Works only in MoE-LLaVA checkpoints."
    if kind.thresholds:
        names = ", ".join(f"`{name}`" for name in kind.thresholds)
        yield f"[May change while requests run](../routers.md#changing-thresholds): {names}."


def _value(about: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A setting's JSON schema in words."""
    if "anyOf" in about:
        return " or ".join(_value(one, definitions) for one in about["anyOf"])
    if "$ref" in about:
        about = definitions[about["$ref"].split("/")[-1]]
    if "enum" in about:
        return " or ".join(f"`{_json(one)}`" for one in about["enum"])
    if about.get("type") == "array":
        return f"a list (each {_value(about['items'], definitions)})"
    if "properties" in about:
        return "an object of " + ", ".join(f"`{name}`" for name in about["properties"])
    kinds = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "null": "null"}
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "exclusiveMaximum": "below {}",
    }
    bounds = [words[key].format(about[key]) for key in words if key in about]
    return " ".join([kinds.get(about.get("type", ""), str(about.get("type", "anything"))), *bounds])


def _json(value: object) -> str:
    return json.dumps(value).strip('"')


if __name__ == "__main__":
    print(page(), end="")
