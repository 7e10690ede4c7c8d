"""From the rows of a raw run to the rows of its derived run."""
