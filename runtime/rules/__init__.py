"""Which drafted tokens stand, and how tokens are chosen."""
