"""Every metric of the service; docs/provisioner.md says which of them deserve an alert."""

from prometheus_client import Counter, Gauge, Histogram

DURATIONS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
DELAYS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 60, 300)

queue_length = Gauge(
    "provisioner_queue_length", "Instances that wait for work or are being worked on"
)
queue_delay = Histogram(
    "provisioner_queue_delay_seconds", "From when work was due until it was begun", buckets=DELAYS
)
attempts = Counter(
    "provisioner_attempts_total", "Attempts at an instance by their outcome", ["action", "outcome"]
)
attempt_duration = Histogram(
    "provisioner_attempt_duration_seconds", "Of an attempt", ["action"], buckets=DURATIONS
)
failures = Counter(
    "provisioner_failures_total", "Attempts that failed, by what failed", ["action", "step"]
)
helm_duration = Histogram(
    "provisioner_helm_duration_seconds", "Of a run of Helm", ["command"], buckets=DURATIONS
)
leases = Gauge("provisioner_leases", "Instances that this process holds")
lease_age = Gauge("provisioner_lease_age_seconds", "Of the oldest lease that this process holds")
leases_lost = Counter(
    "provisioner_leases_lost_total", "Leases that ran out before the work was done"
)
instances = Gauge("provisioner_instances", "Rows by status, at the last resync", ["status"])
health = Gauge(
    "provisioner_instances_health", "Running instances by health, at the last resync", ["health"]
)
repairs = Counter(
    "provisioner_repairs_total", "Instances found other in the cluster than they were made"
)
orphans = Gauge("provisioner_orphans", "Releases and volumes without a row, at the last resync")
resync_time = Gauge("provisioner_last_resync_timestamp_seconds", "When the last resync succeeded")
reachable = Gauge("provisioner_reachable", "Whether it is reached (1) or not (0)", ["what"])
