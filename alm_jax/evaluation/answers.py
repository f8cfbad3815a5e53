"""How much of what is written is right."""

import re


def normalise(answer: str) -> str:
    """An answer without case, punctuation, articles and needless spaces, as SQuAD's exact match has it."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
