"""Bluesky side of the package: raw documents in, derived documents out. All threads are started here."""
