"""The dev stack: what `make up` runs, and the program without Pulumi."""
