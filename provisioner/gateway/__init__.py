"""The instance gateway, the only door that instances and the ingress may knock on.

An instance says what it did by its own token, the ingress asks what an API key may do. It is a
process of its own, `python -m provisioner.gateway`, with a login role that may execute three
functions; it reaches neither a table nor the cluster.
"""
