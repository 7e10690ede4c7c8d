"""Sources of raw runs and their frames: documents, files, Tiled and databroker."""
