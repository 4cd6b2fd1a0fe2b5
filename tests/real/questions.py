"""Twenty conversations of our own: what people ask, the last message of each to be answered."""

from __future__ import annotations

_LIGHTHOUSE = (
    "The lighthouse on Gull Point was built in 1871 after three ships ran aground in one winter. Its keeper lived in "
    "a cottage below the tower and climbed 142 steps every evening to light the lamp. In 1923 the oil lamp was "
    "replaced by an electric one, and in 1968 the last keeper left. Today volunteers open the tower on Sundays, and "
    "the money from tickets pays for new paint, which the salty wind takes off again within four years."
)
_MEETING = (
    "Anna said that the new shop opens on 3 May. Ben will order forty chairs, half of them red. Carla asked who pays "
    "for the sign; Anna answered that the owner of the house does. Ben has no van, so Carla lends him hers on Friday."
)
_FUNCTION = """def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)"""

_Message = dict[str, str]


def _ask(*said: str) -> list[_Message]:
    """Messages of user and assistant in turn."""
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(said)]


QUESTIONS: dict[str, list[_Message]] = {
    "summary of a place": _ask(f"Summarize this text in two sentences:\n\n{_LIGHTHOUSE}"),
    "summary of a meeting": _ask(f"Summarize these notes as a list:\n\n{_MEETING}"),
    "question on a text": _ask(f"{_LIGHTHOUSE}\n\nWhy was the lighthouse built, and what pays for it today?"),
    "text repeated": _ask(f"Repeat the following text word for word:\n\n{_MEETING}"),
    "to German": _ask("Translate into German: The weather is fine today, and we go to the sea."),
    "to French": _ask("Translate into French: My sister has two cats and an old bicycle."),
    "to Spanish": _ask("Translate into Spanish: Where is the station? I need a ticket to Madrid."),
    "Python": _ask("Write a Python function that tells whether a number is prime, with an example."),
    "Python, changed": _ask(f"Add type hints and a docstring to this function:\n\n{_FUNCTION}"),
    "SQL": _ask("Write an SQL query for the ten customers with the highest total of orders."),
    "sum": _ask("What is 17 + 26? Explain every step."),
    "word problem": _ask("A box holds 12 eggs. I buy 3 boxes and break 5 eggs. How many eggs are left?"),
    "fractions": _ask("Which is larger, 3/4 or 5/8? Show how you know."),
    "story": _ask("Tell me a short story about a fox who finds a lost letter."),
    "poem": _ask("Write a poem of eight lines about rain on a tin roof."),
    "facts": _ask("Why is the sky blue? Answer in one paragraph."),
    "list": _ask("List five things to take along on a hike in the mountains, with a reason for each."),
    "letters beyond ASCII": _ask("What do these words mean: naïve, Übermut, señor, 東京, спасибо?"),
    "two turns": _ask(
        "What is the capital of Italy?", "The capital of Italy is Rome.", "And what should I see there in one day?"
    ),
    "a role and three turns": [
        {"role": "system", "content": "You are a cook who answers in short sentences."},
        *_ask(
            "I have eggs, flour and milk. What can I make?",
            "You can make pancakes.",
            "How much of each do I need for two people?",
            "Two eggs. One cup of flour. One cup of milk.",
            "Write the whole recipe down.",
        ),
    ],
}  # fmt: skip
