"""What Prometheus reads, in a registry of its own."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ossia.engine.engine import Stats
from ossia.server.bridge import End, Usage

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
SECONDS_A_TOKEN = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counts requests and generations, and asks the engine for the rest when it is read."""

    def __init__(self, stats: Callable[[], Stats]) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self._requests = Counter("ossia_http_requests", "Requests answered.", ("route", "status"), registry=registry)
        self._request_seconds = Histogram(
            "ossia_http_request_seconds", "From a request's head to its last byte.", buckets=SECONDS, registry=registry
        )
        self.in_flight = Gauge("ossia_http_requests_in_flight", "Requests being answered.", registry=registry)
        self._generations = Counter(
            "ossia_generations", "Generations that ended, by how they did.", ("end",), registry=registry
        )
        self._first_token = Histogram(
            "ossia_time_to_first_token_seconds",
            "From submission to the first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._between = Histogram(
            "ossia_time_per_output_token_seconds",
            "Of each generation, the mean time from a token to the next.",
            buckets=SECONDS_A_TOKEN,
            registry=registry,
        )
        self._total = Histogram(
            "ossia_generation_seconds", "From submission to the last token.", buckets=SECONDS, registry=registry
        )
        self._reasoning = Counter("ossia_reasoning_tokens", "Tokens of reasoning.", registry=registry)
        registry.register(_EngineCollector(stats))

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.observe(seconds)

    def generation(self, usage: Usage, end: End) -> None:
        """A generation ended."""
        self._generations.labels(end).inc()
        self._reasoning.inc(usage.reasoning_tokens)
        if usage.completion_tokens:
            self._first_token.observe(usage.first_token_seconds)
            self._total.observe(usage.total_seconds)
        if usage.completion_tokens > 1:
            between = (usage.total_seconds - usage.first_token_seconds) / (usage.completion_tokens - 1)
            self._between.observe(between)

    def text(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], Stats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for name, text, value in (
            ("ossia_queue_requests", "Requests that wait for the engine.", stats.waiting),
            ("ossia_running_requests", "Requests that the engine runs.", stats.running),
            ("ossia_batch_requests", "Requests in the engine's last step.", stats.batch),
            ("ossia_cache_blocks", "Blocks of the cache.", stats.num_blocks),
            ("ossia_cache_blocks_used", "Blocks of the cache that requests hold.", stats.used_blocks),
        ):
            yield GaugeMetricFamily(name, text, value)
        for name, text, value in (
            ("ossia_engine_steps", "Steps of the engine.", stats.steps),
            ("ossia_prompt_tokens", "Tokens of prompts.", stats.prompt_tokens),
            ("ossia_cached_prompt_tokens", "Tokens of prompts that were in the cache.", stats.cached_tokens),
            ("ossia_generated_tokens", "Tokens generated.", stats.generated_tokens),
            ("ossia_preemptions", "Requests set back to make room for others.", stats.preemptions),
        ):
            yield CounterMetricFamily(name, text, value)
