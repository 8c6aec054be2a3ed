"""The questions that a small model understands, if the folder of its checkpoint lists them in questions.json."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from vtcframe.errors import UsageError

FILE = "questions.json"


@dataclass(frozen=True)
class QuestionVocabulary:
    """The words that a model was trained on, and templates of questions made of them.

    A model that was trained on a few hundred words answers a question with any other word all the same, and the answer
    means nothing. A folder of such a checkpoint has questions.json with `vocabulary`, a list of lower-case words and
    punctuation marks, and `forms`, type of question -> template.
    """

    words: frozenset[str]
    templates: tuple[str, ...]

    def describe_unknown_words(self, question: str) -> str | None:
        """Return which words of a question are unknown, and the templates; None if all words are known."""
        unknown = [word for word in re.findall(r"\w+|[^\w\s]+", question.lower()) if word not in self.words]
        if not unknown:
            return None
        return f"the model does not know {', '.join(map(repr, unknown))}; it can be asked: {'  '.join(self.templates)}"


def read_question_vocabulary(folder: Path) -> QuestionVocabulary | None:
    """Read questions.json in the folder of a checkpoint; None if there is none. UsageError for one of another form."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return QuestionVocabulary(frozenset(content["vocabulary"]), tuple(content["forms"].values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} must hold `vocabulary`, a list, and `forms`, a mapping: {error!r}") from error
