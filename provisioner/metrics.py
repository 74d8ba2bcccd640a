"""All metrics of the service; docs/provisioner.md lists them, docs/alerts.md the alerts on them."""

from prometheus_client import Counter, Gauge, Histogram

DURATIONS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
DELAYS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300)

queue_length = Gauge(
    "provisioner_queue_length", "Instances whose work is due, scheduled or in progress"
)
queue_delay = Histogram(
    "provisioner_queue_delay_seconds", "Time from work being due to its claim", buckets=DELAYS
)
attempts = Counter("provisioner_attempts_total", "Attempts by outcome", ["action", "outcome"])
attempt_duration = Histogram(
    "provisioner_attempt_duration_seconds", "Duration of attempts", ["action"], buckets=DURATIONS
)
failures = Counter(
    "provisioner_failures_total", "Failed attempts by class of error", ["action", "error"]
)
helm_duration = Histogram(
    "provisioner_helm_duration_seconds", "Duration of Helm runs", ["command"], buckets=DURATIONS
)
leases = Gauge("provisioner_leases", "Leases that this process holds")
lease_age = Gauge("provisioner_lease_age_seconds", "Age of the oldest lease of this process")
leases_lost = Counter("provisioner_leases_lost_total", "Leases that expired during the work")
instances = Gauge("provisioner_instances", "Instances by status, at the last resync", ["status"])
health = Gauge(
    "provisioner_instances_health", "Running instances by health, at the last resync", ["health"]
)
held = Gauge("provisioner_instances_held", "Instances with a change that is not tried again")
repairs = Counter(
    "provisioner_repairs_total", "Instances that differed in the cluster from what was applied"
)
orphans = Gauge("provisioner_orphans", "Releases and objects without a row, at the last resync")
resync_time = Gauge(
    "provisioner_last_resync_timestamp_seconds", "Time of the last successful resync"
)
measure_time = Gauge(
    "provisioner_last_measurement_timestamp_seconds",
    "Time of the last measurement of all instances by this replica",
)
nodes = Gauge(
    "provisioner_nodes",
    "Nodes whose kubelet was measured, or failed, at the last measurement by this replica",
    ["outcome"],
)
reachable = Gauge("provisioner_reachable", "1 if reachable, otherwise 0", ["what"])
