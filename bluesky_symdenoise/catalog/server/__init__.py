"""An embedded Tiled server, and diagnosis of what may be wrong between a computer and a server."""
