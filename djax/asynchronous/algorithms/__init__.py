"""The algorithms of workers that never wait, as what ONE worker does."""
