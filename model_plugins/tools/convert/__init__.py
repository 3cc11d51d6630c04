"""`prismoe convert`: turns a checkpoint as its authors ship it into a self-contained folder."""
