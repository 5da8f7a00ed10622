"""PowerGossip on one page, and its linear algebra in the files beside that page."""
