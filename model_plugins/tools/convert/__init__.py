"""`prismoe convert`: from a checkpoint as its authors ship it to one that needs nothing beside its folder."""
