"""Questions over documents: drawn by templates without a model, parted by document, every one marked synthetic."""

from dacheng.rag.questions.by_model import questions_by_model
from dacheng.rag.questions.draw import draw_questions, in_turn
from dacheng.rag.questions.hand import hand_questions
from dacheng.rag.questions.near import without_near
from dacheng.rag.questions.question import Question, read_questions, write_questions
from dacheng.rag.questions.rarity import Rarity
from dacheng.rag.questions.splits import Splits, split_questions
from dacheng.rag.questions.unanswerable import unanswerable

__all__ = [
    "Question",
    "Rarity",
    "Splits",
    "draw_questions",
    "hand_questions",
    "in_turn",
    "questions_by_model",
    "read_questions",
    "split_questions",
    "unanswerable",
    "without_near",
    "write_questions",
]
