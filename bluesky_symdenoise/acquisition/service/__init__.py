"""Services that follow raw runs, and the sweep for what is unfinished."""
