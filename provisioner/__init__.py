"""The instance-provisioner: makes the cluster agree with the table `instances`.

docs/provisioner.md says what is promised, and in "An attempt, step by step" how a row becomes a
release.
"""
