"""What the routers of a run do: a page to look at, and its numbers."""
