"""Costs of acquisition, replay, servers and searches."""
