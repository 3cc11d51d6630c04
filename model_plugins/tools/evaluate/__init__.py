"""`prismoe evaluate`: the same questions under several routings."""
