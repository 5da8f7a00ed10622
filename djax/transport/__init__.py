"""Processes: how they find each other, exchange bytes, and end."""
