"""The report of `prismoe check`, as text and as JSON."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from prismoe.model_plugins.tools.check.comparison import Comparison
from prismoe.model_plugins.tools.check.reference import Reference
from prismoe.model_plugins.tools.checkpoint_facts import CheckpointFacts

GIB = 2**30


@dataclass(frozen=True)
class CheckReport:
    """The results of a check. `routing` is `ModelRouting.describe`."""

    facts: CheckpointFacts
    routing: Mapping[str, Any]
    unused_tensors: Sequence[str]
    reference: Reference | None
    comparisons: Sequence[Comparison]

    @property
    def passed(self) -> bool:
        """Whether every array is within its tolerance."""
        return all(comparison.within for comparison in self.comparisons)

    def as_json(self) -> dict[str, Any]:
        comparisons = [
            asdict(comparison)
            | {"within": comparison.within}
            | ({} if isfinite(comparison.difference) else {"difference": None})
            for comparison in self.comparisons
        ]
        reference = self.reference and {
            "file": self.reference.file,
            "cases": [{"prefix": case.prefix, "prompt": case.description} for case in self.reference.cases],
            "comparisons": comparisons,
            "not_compared": self.reference.left_out,
        }
        return {
            **self.facts.as_json(),
            "routing": dict(self.routing),
            "unused_tensors": list(self.unused_tensors),
            "reference": reference,
            "passed": self.passed,
        }

    def as_text(self) -> str:
        lines = [*self._checkpoint(), *self._routing(), *self._tensors(), *self._reference()]
        return "\n".join(lines)

    def _checkpoint(self) -> Iterator[str]:
        facts = self.facts
        decoder, tower, weights, experts = facts.decoder, facts.tower, facts.weights, facts.experts
        yield f"{facts.model}"
        yield _line("family", f"MoE-LLaVA on {facts.family} ({facts.architecture})")
        yield _line(
            "decoder",
            f"{decoder.layers} layers, hidden size {decoder.hidden_size}, {decoder.attention_heads} heads, "
            f"vocabulary {decoder.vocabulary}, {decoder.positions} positions",
        )
        yield _line(
            "experts",
            f"{', '.join(f'{count} in layer {layer}' for layer, count in experts.by_layer.items())}; "
            f"k = {experts.top_k}{', with a residual layer' if experts.residual else ''}"
            if experts.by_layer
            else "none: a dense checkpoint",
        )
        yield _line(
            "image tower",
            f"{tower.name} ({tower.kind}, {tower.image_size} px, {tower.image_aspect_ratio}), "
            f"{tower.tokens_per_image} tokens an image, in {tower.folder}",
        )
        tokenizer = facts.tokenizer
        yield _line(
            "tokenizer",
            f"{tokenizer.kind}, {tokenizer.tokens} tokens" if tokenizer else "none that can be loaded",
        )
        dtypes = ", ".join(f"{name} ({count} tensors)" for name, count in weights.dtypes.items())
        files = f"{len(weights.files)} file{'s' if len(weights.files) > 1 else ''}"
        yield _line(
            "weights", f"{weights.parameters:,} parameters, {_size(weights.bytes)} in {files}, {dtypes}"
        )

    def _routing(self) -> Iterator[str]:
        source = {"default": "as MoE-LLaVA's authors do", "checkpoint": "by the checkpoint's prismoe_routing"}
        origin = source.get(self.routing["source"], f"by {self.routing['source']}")
        by_policy: dict[str, list[str]] = {}
        for layer in self.routing["layers"]:
            settings = ", ".join(
                f"{name} {value}"
                for name, value in layer["policy"].items()
                if name != "policy" and value is not None
            )
            by_policy.setdefault(f"{layer['policy']['policy']} ({settings})", []).append(str(layer["layer"]))
        for policy, layers in by_policy.items():
            yield _line("routing", f"{policy} in layers {', '.join(layers)}, {origin}")

    def _tensors(self) -> Iterator[str]:
        total, unused = self.facts.weights.tensors, self.unused_tensors
        if not unused:
            yield _line("tensors", f"{total}, all used")
            return
        yield _line("tensors", f"{total}; serving leaves {len(unused)} out:")
        yield from (f"{'':14}{name}" for name in unused)

    def _reference(self) -> Iterator[str]:
        if self.reference is None:
            return
        prompts = " and ".join(case.description for case in self.reference.cases)
        yield ""
        yield f"Against {self.reference.file}, in float32: {prompts}"
        width = max(len(comparison.array) for comparison in self.comparisons) + 2
        yield f"  {'array':{width}}{'difference':>20}{'tolerance':>12}"
        for comparison in self.comparisons:
            yield from _comparison(comparison, width)
        if self.reference.left_out:
            yield f"  Not compared: {', '.join(self.reference.left_out)}"
        broken = [comparison.array for comparison in self.comparisons if not comparison.within]
        yield f"  Beyond tolerance: {', '.join(broken)}" if broken else "  All within tolerance."


def _comparison(comparison: Comparison, width: int) -> Iterator[str]:
    exact = comparison.tolerance == 0
    difference = (
        f"{comparison.difference:.0f} of {comparison.count}" if exact else f"{comparison.difference:.1e}"
    )
    tolerance = "exact" if exact else f"{comparison.tolerance:.0e}"
    place = "" if comparison.at is None else f" at {comparison.at}"
    verdict = "" if comparison.within else f"  BROKEN{place}"
    yield f"  {comparison.array:{width}}{difference:>20}{tolerance:>12}{verdict}"
    for tie in comparison.ties:
        yield f"    a tie at {tie.at}: {tie.chosen}, the reference {tie.reference}, {tie.gap:.1e} apart"


def _line(name: str, text: str) -> str:
    return f"  {name:12}{text}"


def _size(size: int) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.2f} MiB"
