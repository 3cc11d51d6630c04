"""`prismoe evaluate`: compares a model's answers to the same questions under several routings."""
