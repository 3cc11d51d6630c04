"""The comparison of routers: small checkpoints that differ in the router alone, trained and measured."""
