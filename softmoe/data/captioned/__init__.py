"""Images and texts that belong together."""
