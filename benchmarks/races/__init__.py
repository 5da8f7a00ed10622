"""Races of djax against other libraries, each contestant in a process of its own."""
