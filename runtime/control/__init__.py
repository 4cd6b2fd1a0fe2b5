"""How much is drafted, and by whom."""
