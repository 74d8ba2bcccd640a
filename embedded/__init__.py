"""Servers of our own on loopback, for the dev stack, the tests and rehearsals."""
