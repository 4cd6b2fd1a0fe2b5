"""Whether a device really runs graphs here, and what passes of a bundle cost on it: tried in processes of their own."""
