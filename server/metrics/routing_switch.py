"""Back to `native` and to the policy again: the engines, the prefix cache, the log and the metrics."""

import asyncio
import secrets

from prometheus_client import CollectorRegistry, Counter, Gauge

from prismoe.model_plugins.routing import RoutedBy
from prismoe.server.metrics.load_reader import Engine, logger


class RoutingSwitch:
    """Of a server whose model has a policy to switch.

    vLLM empties its prefix cache only while no request runs. So each request that the engines get after a
    change has a salt of that change: it finds nothing in the cache that was computed before, also of
    requests that ran on. A salt is random, or a client could fill the cache for it beforehand.
    """

    def __init__(
        self, engines: Engine, in_force: RoutedBy, registry: CollectorRegistry, model_name: str
    ) -> None:
        self._engines = engines
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
        self._gauge.set(in_force == "policy")

    async def to(self, choice: RoutedBy, who: str) -> None:
        """Have all engines route by this choice. `who` is named in the log where that changes anything."""
        async with self._one_at_a_time:
            changes = await self._engines.ask("prismoe_route_by", choice)
            self._gauge.set(choice == "policy")
            if any(changes):
                self._salt = secrets.token_hex(16)
                self._switches[choice].inc()
                logger.info("The routing is switched to %s by the key of %s.", choice, who)

    def salted(self, own: str | None) -> str | None:
        """The cache's salt of a request that an engine gets now; `own` is the client's."""
        return f"{self._salt}{own or ''}" or None
