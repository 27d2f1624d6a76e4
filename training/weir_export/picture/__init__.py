"""The pictures of the bundle, drawn only by this code."""
