"""What runs in the API process: the command line, the HTTP app, metrics and the demo. Never imports torch."""
