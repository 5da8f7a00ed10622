"""Describes the tables of the PowerGossip paper."""
