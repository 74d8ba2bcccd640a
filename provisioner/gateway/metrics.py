"""The gateway's metrics, in a registry of its own; docs/gateway.md lists them."""

from prometheus_client import CollectorRegistry, Counter, Histogram

REGISTRY = CollectorRegistry()

DURATIONS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

request_duration = Histogram(
    "gateway_request_duration_seconds",
    "Duration of requests",
    ["path", "status"],
    buckets=DURATIONS,
    registry=REGISTRY,
)
events = Counter("gateway_events_total", "Events by outcome", ["outcome"], registry=REGISTRY)
for outcome in ("counted", "duplicate"):
    events.labels(outcome)  # there from the start, as an alert expects
keys = Counter(
    "gateway_keys_total", "API keys by what was said of them", ["outcome"], registry=REGISTRY
)
