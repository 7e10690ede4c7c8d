"""Bluesky: documents in, derived documents out; the only threads."""
