"""Changes of the routing while requests run: engines, prefix cache, log and metrics."""

import asyncio
import secrets
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from prismoe.model_plugins.routing import RoutedBy
from prismoe.server.metrics.load_reader import Engine, logger
from prismoe.server.metrics.routes import ServedRouting, routing_in_force


class RoutingSwitch:
    """Of a server whose model has a policy to switch. It keeps `routing` true to what is in force.

    vLLM empties its prefix cache only while no request runs. So each request that the engines get after a
    change has a salt of that change: it finds nothing in the cache that was computed before, also of
    requests that ran on. A salt is random, or a client could fill the cache for it beforehand.
    """

    def __init__(
        self, engines: Engine, routing: ServedRouting, registry: CollectorRegistry, model_name: str
    ) -> None:
        self._engines, self._routing = engines, routing
        self._one_at_a_time = asyncio.Lock()
        self._salt = ""
        switches = Counter(
            "prismoe_routing_switches",
            "How often the routing was switched, by what it was switched to.",
            ["to", "model_name"],
            registry=registry,
        )
        self._switches = {choice: switches.labels(choice, model_name) for choice in ("native", "policy")}
        self._gauge = Gauge(
            "prismoe_policy_in_force",
            "1 while the policy routes, 0 while the model's own gate does.",
            ["model_name"],
            registry=registry,
        ).labels(model_name)
        self._gauge.set(routing.in_force == "policy")
        self._changes = Counter(
            "prismoe_threshold_changes",
            "How often thresholds of the policies were changed.",
            ["model_name"],
            registry=registry,
        ).labels(model_name)

    async def to(self, choice: RoutedBy, who: str) -> None:
        """Have all engines route by this choice. `who` is named in the log where that changes anything."""
        async with self._one_at_a_time:
            changes = await self._engines.ask("prismoe_route_by", choice)
            self._gauge.set(choice == "policy")
            self._routing.in_force = choice
            if any(changes):
                self._new_salt()
                self._switches[choice].inc()
                logger.info("The routing is switched to %s by the key of %s.", choice, who)

    async def change_thresholds(
        self, common: Mapping[str, float], by_layer: Mapping[str, Mapping[str, float]], who: str
    ) -> None:
        """Have all engines route by these thresholds (`changed_thresholds`); `who` is named in the log.

        Raises ValueError with a sentence for what can't be, and then nothing is changed.
        """
        from prismoe.model_plugins.routing.thresholds import changed_thresholds  # it imports torch

        async with self._one_at_a_time:
            policies = {layer.layer: layer.policy for layer in self._routing.layers}
            asked = changed_thresholds(policies, common, by_layer)
            changes = await self._engines.ask("prismoe_change_thresholds", asked)
            self._routing.layers = (await routing_in_force(self._engines)).layers
            if any(changes):
                self._new_salt()
                self._changes.inc()
                told = [f"{name} is {value:g}" for name, value in common.items()]
                for layer, own in by_layer.items():
                    told += [f"{name} of layer {layer} is {value:g}" for name, value in own.items()]
                logger.info("Thresholds are changed by the key of %s: %s.", who, ", ".join(told))

    def _new_salt(self) -> None:
        self._salt = secrets.token_hex(16)

    def salted(self, own: str | None) -> str | None:
        """The cache's salt of a request that an engine gets now; `own` is the client's."""
        return f"{self._salt}{own or ''}" or None
