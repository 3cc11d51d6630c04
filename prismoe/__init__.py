"""prismoe. The folders beside this file are links to those at the repository's top."""
