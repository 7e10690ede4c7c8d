"""A server of one's own, and what may be wrong between a computer and a server."""
