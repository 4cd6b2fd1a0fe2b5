"""A draft model with another vocabulary than the target's: its tokens to the target's and back."""
