"""The tables of the PowerGossip paper."""
