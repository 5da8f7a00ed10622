"""Speed, measured side by side: each script compares within one run."""
