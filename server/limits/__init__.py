"""How much a client may take."""
