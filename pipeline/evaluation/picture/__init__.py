"""A person's own picture with a hole: read, brought to a painter's size and back, written, and the page on which a hole is drawn."""
