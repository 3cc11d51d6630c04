"""A corpus of broken images and bodies: seeds, and what a seed number makes of them."""
