"""PowerGossip, and its linear algebra."""
