"""The pictures that ship with the bundle, drawn by this code alone."""
