"""The routing policies, one file per paper."""
