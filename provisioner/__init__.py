"""The instance-provisioner: makes the cluster agree with the table `instances`."""
