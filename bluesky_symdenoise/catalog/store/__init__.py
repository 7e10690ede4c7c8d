"""Derived runs on disk and in Tiled: files, documents, journals, access."""
