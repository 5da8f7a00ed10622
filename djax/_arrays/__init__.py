"""Arrays and random keys: what all parts of djax do with them."""
