"""Measurements of the instance-provisioner: `python -m bench.provisioner`."""
