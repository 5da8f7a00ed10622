"""Training runs and reproductions of the papers' figures and tables."""
