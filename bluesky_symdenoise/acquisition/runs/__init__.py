"""Where raw runs and their frames come from: documents, files, Tiled and databroker."""
