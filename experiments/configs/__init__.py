"""Tables of papers as values: a complete configuration for each row."""
