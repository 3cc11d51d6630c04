"""How a trained checkpoint does: asked in this process or behind a server, and the card that tells it."""
