"""Draft models that learn from what the target makes of their drafts, while they are used."""
