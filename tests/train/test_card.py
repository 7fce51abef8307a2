import pytest

from recipes.train.card import share_in_answers
from recipes.train.corpus import Corpus, Document, Pair

CODE = 'def f():\n    """Find a nest.\n\n    More."""\n'


@pytest.mark.parametrize(
    ("answer", "share"), [("Find a nest.", len("Find a nest.") / len(CODE)), ("Another.", 0.0)]
)
def test_held_out_docstrings_that_are_answers_are_owned_up_to(answer, share):
    held_out = (Document("nest.py", CODE), Document("notes.txt", ""))
    corpus = Corpus((), held_out, (Pair("function", "a.f", answer),), "", "")
    assert share_in_answers(corpus) == share
