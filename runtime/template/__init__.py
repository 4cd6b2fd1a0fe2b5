"""Chat templates: parsed by jinja2, run by us, every character marked by its origin."""

from paceline.runtime.template.chat_template import ChatTemplate

__all__ = ["ChatTemplate"]
