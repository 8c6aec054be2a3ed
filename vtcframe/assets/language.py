"""TODO: vtcframe/assets/language.py."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Language:
    """The few words and forms of question that a tiny model was taught, as its folder says in questions.json."""

    words: frozenset[str]
    forms: tuple[str, ...]

    def misunderstood(self, question: str) -> str | None:
        """Say which words of a question are unknown, and what may be asked; None where all are known."""
        unknown = [word for word in re.findall(r"\w+|[^\w\s]+", question.lower()) if word not in self.words]
        if not unknown:
            return None
        return f"the model does not know {', '.join(map(repr, unknown))}; it can be asked: {'  '.join(self.forms)}"
