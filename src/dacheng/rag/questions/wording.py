"""The small grammar that templates need: a docstring's imperative as the end of a question, and names in a text."""

from __future__ import annotations

import re

_VERBS = frozenset(
    """abort accept access acquire add adjust advance allocate allow analyze append apply apportion arrange assign
    attach authenticate begin bind block break build cache calculate call cancel capitalize capture change check
    choose clean clear clone close collect combine compare compile complete compose compress compute concatenate
    configure connect construct consume contain convert copy count create cut deallocate decide declare decode
    decompress decrement define delete deliver describe deserialize detach detect determine disable disconnect
    discard dispatch display divide do draw drop dump emit emulate enable encapsulate encode encrypt ensure enter
    enumerate erase escape evaluate examine execute exit expand export extend extract feed fetch fill filter find
    finish flush follow force fork format forward free generate get give group guess handle hash hold identify
    implement import increment indent indicate inform initialize insert inspect install interpret interrupt invoke
    issue iterate join keep kill launch leave let limit list listen load locate lock log look lower make manage map
    mark match merge mimic mix modify move multiply negate normalize notify obtain open output override pack parse
    pass perform permit pick pop post prepare prevent print process produce profile prompt provide push put query
    quote raise read rebuild receive recommend record redirect reduce refresh register release remove rename render
    reopen repeat replace report represent request reset resize resolve restore restrict resume retrieve retry
    return reverse rewind roll rotate round run sample save scan schedule search seek select send separate serialize
    serve set shift show shuffle shut sign signal simulate skip sleep sort specify spawn split start stop store
    strip substitute subtract suggest support suppress suspend swap switch synchronize take tell terminate test
    tokenize toggle trace track transfer transform translate traverse truncate try turn undo unescape unlock unpack
    unquote unregister unset update upload use validate verify wait walk warn wrap write yield zip""".split()  # noqa: SIM905
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_LOWER_UPPER = re.compile(r"[a-z0-9][A-Z]")
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")


def third_person(sentence: str) -> str | None:
    """ "Recursively delete a tree." -> "recursively deletes a tree"; None where the sentence begins with no verb that
    is known here (better no question than a crooked one)."""
    words = sentence.rstrip(" .:;!。").split(" ")
    at = 1 if len(words) > 2 and words[0].endswith("ly") and words[1].islower() else 0
    verb = words[at].lower()
    if at == 0 and not words[0][:1].isupper():
        return None
    if verb in _VERBS:
        words[at] = _inflected(verb)
    elif not _is_inflected(verb):
        return None
    else:
        words[at] = verb
    words[0] = words[0][:1].lower() + words[0][1:]
    return " ".join(words)


def is_identifier(word: str) -> bool:
    """Whether a word can only be a program's name: with an underscore or a dot inside, or of the form camelCase."""
    inner = word.strip("_.")
    return bool(_IDENTIFIER.fullmatch(word)) and (
        "_" in inner or ("." in inner and not re.fullmatch(r"[a-z]\.[a-z]", inner)) or bool(_LOWER_UPPER.search(inner))
    )


def identifiers(text: str) -> list[str]:
    """Names of a program in running text, each once, in order."""
    words = (word.rstrip(".") for word in _IDENTIFIER.findall(text))
    return list(dict.fromkeys(word for word in words if is_identifier(word)))


def is_chinese(text: str) -> bool:
    """Whether a third of the letters are Han."""
    letters = sum(character.isalpha() for character in text)
    return letters > 0 and len(_HAN.findall(text)) * 3 >= letters


def _inflected(verb: str) -> str:
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def _is_inflected(verb: str) -> bool:
    stems = {verb[:-1]} if verb.endswith("s") else set()
    stems |= {verb[:-2]} if verb.endswith("es") else set()
    stems |= {verb[:-3] + "y"} if verb.endswith("ies") else set()
    return bool(stems & _VERBS)
