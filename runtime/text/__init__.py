"""Text to token ids and back."""

from paceline.runtime.text.text import Text

__all__ = ["Text"]
