"""From findings to something to read."""
