"""Whether the server is alive and ready, and how it ends."""
