"""The instance-provisioner: makes the cluster agree with the table `instances`.

To know how a row becomes a release, read settings, leases, reconciler, actions, releases and
health_watch, in this order; docs/provisioner.md says what is promised, and what the rest is.
"""
