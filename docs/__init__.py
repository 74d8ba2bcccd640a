"""The documents, what generates them, and the examples that they show."""
