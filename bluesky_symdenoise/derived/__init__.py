"""Content of one event of a derived run, shared by all code that writes or reads it."""
