"""Videos: from untrusted bytes to frames, by a decoder in a process of its own."""
