"""Writes instruction_checks.json: verdicts of the authors' own code of IFEval (as in lm-evaluation-harness).

python tests/goldens/make_instruction_checks.py LM_EVAL_DIR IFEVAL_JSONL
needs nltk, langdetect and immutabledict beside lm_eval/tasks/ifeval. Left out: number_sentences (it needs nltk's
trained punkt) and response_language (langdetect), and a letter that is none (their code draws another at random); the
language of english_capital and english_lowercase is taken for English; words by nltk's word tokenizer without punkt.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LEFT_OUT = ("length_constraints:number_sentences", "language:response_language")
PER_INSTRUCTION = 8
RESPONSES = [
    "Yes.",
    "My answer is no.",
    '"A quoted answer, whole."',
    "HELLO WORLD THIS IS A SHOUT WITH MANY CAPITAL WORDS AND NO END",
    "all of this is written in small letters and there is no comma here.",
    '{"name": "x", "items": [1, 2, 3]}',
    '```json\n{"a": [1, 2]}\n```',
    "{'a': 1}",
    "<<A title>>\n\nSome text, with a comma.\n\nP.S. One more thing.",
    "<< >>\nNo title\n\nP.P.S I forgot",
    "* one\n* two\n* three",
    "- one\n- two\n - three\n- four\n- five",
    "** bold **\n**Bold one** and **bold two** and *three* and * *",
    "First paragraph.\n***\nSecond paragraph.\n***\nThird one.",
    "***\nFirst\n***\nSecond\n***",
    "One\n***\n\n***\nTwo",
    "One answer.\n******\nAnother answer.",
    "Same.\n******\nSame.",
    "******\nA\n******\nB\n******",
    "Section 1\nIntro\nSection 2\nBody\nSection 3\nEnd",
    "SECTION 1. The start SECTION 2. More of it PARAGRAPH 1 PARAGRAPH 2 Day 1 Day 2",
    "Dear [name], you live at [address] in [city], [country] on [date] with [number] [a] [b] [c] [d] [e] [f].",
    "weekend\n\nSecond paragraph begins here.\n\n'It' is \"third\".\n\nFourth, and last.",
    "The NASA and the ESA met the U.S.A. team; IT was WELL-KNOWN, they said: OK! I AM A BOT. DON'T.",
    "word " * 320,
    "Is there anything else I can help with?",
    "peace and love, love, LOVE; education, correlated, experiencing the engaging story of a coop Indian",
    "Hope you agree with me.\nAny other questions?",
    "   \n",
    "Write a 300+ word summary and then the answer, which is short.",
    "i a am the very model of a modern major general qqq jjj zzz eee! #5 ! !",
]


def make(data: Path) -> dict:
    """The golden, from lm_eval as it can be imported now."""
    import langdetect
    import nltk
    from nltk.tokenize.destructive import NLTKWordTokenizer

    nltk.download = lambda *a, **k: None
    nltk.data.find = lambda *a, **k: True
    nltk.word_tokenize = NLTKWordTokenizer().tokenize
    langdetect.detect = lambda text: "en"  # it takes {'a': 1} for Spanish; our check is of letters alone
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    cases: list[dict] = []
    seen: dict[str, list] = {}
    for line in data.read_text().splitlines():
        record = json.loads(line)
        for name, arguments in zip(record["instruction_id_list"], record["kwargs"]):
            short = name.removeprefix("en:")
            given = {key: value for key, value in arguments.items() if value is not None}
            known = seen.setdefault(short, [])
            if not given.get("letter", "a").isalpha() or short in LEFT_OUT:
                continue
            if given in known or len(known) >= PER_INSTRUCTION:
                continue
            known.append(given)
            key = name if name in INSTRUCTION_DICT else short
            instruction = INSTRUCTION_DICT[key](key)
            instruction.build_description(**given)
            # the harness counts a blank response as not following (test_instruction_following_strict)
            verdicts = [bool(r.strip() and instruction.check_following(r)) for r in RESPONSES]
            cases.append({"id": short, "arguments": given, "follows": "".join("01"[v] for v in verdicts)})
    return {"responses": RESPONSES, "cases": cases}


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    path = Path(__file__).resolve().parent / "instruction_checks.json"
    made = make(Path(sys.argv[2]))
    path.write_text(json.dumps(made, ensure_ascii=False, indent=0) + "\n")
    print(len(made["cases"]), "cases", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
