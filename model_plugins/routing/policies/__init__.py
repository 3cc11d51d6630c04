"""The routing policies, one file a paper."""
