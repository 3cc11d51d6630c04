"""Changes of the routing while the server runs: in the engines, the prefix cache, the log and the metrics."""

import asyncio
import secrets
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from prismoe.model_plugins.routing import RoutedBy
from prismoe.server.metrics.load_reader import Engine, logger
from prismoe.server.metrics.routes import ServedRouting, routing_in_force


class RoutingSwitch:
    """Changes the routing of a model with a policy, and keeps `routing` up to date.

    vLLM empties its prefix cache only while no request runs. So each request that starts after a change gets
    the salt of that change. With it the request finds no cache entry that was computed under the old routing.
    A salt is random, because otherwise a client could fill the cache for it before the change.
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

    async def switch_to(self, choice: RoutedBy, key_name: str) -> None:
        """Switch all engines to this routing. If that changes the routing, the log names the key."""
        async with self._one_at_a_time:
            changes = await self._engines.ask("prismoe_route_by", choice)
            self._gauge.set(choice == "policy")
            self._routing.in_force = choice
            if any(changes):
                self._new_salt()
                self._switches[choice].inc()
                logger.info("The key %s switched the routing to %s.", key_name, choice)

    async def change_thresholds(
        self, common: Mapping[str, float], by_layer: Mapping[str, Mapping[str, float]], key_name: str
    ) -> None:
        """Change thresholds of the policies in all engines (`changed_thresholds`). The log names the key.

        Raises ValueError with a sentence if a threshold is not valid. Then nothing changes.
        """
        from prismoe.model_plugins.routing.thresholds import changed_thresholds  # It imports torch.

        async with self._one_at_a_time:
            policies = {layer.layer: layer.policy for layer in self._routing.layers}
            thresholds = changed_thresholds(policies, common, by_layer)
            changes = await self._engines.ask("prismoe_change_thresholds", thresholds)
            self._routing.layers = (await routing_in_force(self._engines)).layers
            if any(changes):
                self._new_salt()
                self._changes.inc()
                values = [f"{name} is {value:g}" for name, value in common.items()]
                for layer, own in by_layer.items():
                    values += [f"{name} of layer {layer} is {value:g}" for name, value in own.items()]
                logger.info("The key %s changed thresholds: %s.", key_name, ", ".join(values))

    def _new_salt(self) -> None:
        self._salt = secrets.token_hex(16)

    def salted(self, own: str | None) -> str | None:
        """Return the cache salt of a request that starts now. `own` is the client's salt."""
        return f"{self._salt}{own or ''}" or None
