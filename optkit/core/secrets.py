"""Passwords and tokens, which no file of a run may hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

LEFT_OUT = "(left out)"
NAMES = r"[\w.-]*(?:token|passw|secret|credential|api[_-]?key|access[_-]?key|private[_-]?key|signature)[\w-]*"
IS_SECRET = re.compile(NAMES, re.IGNORECASE)
NO_SECRETS = re.compile(r"tokeni[sz]|tokens|token_|_token_id", re.IGNORECASE)  # of texts
# as an override, an option, a part of an address, or in a mapping of Hydra's
GIVEN = re.compile(rf"(?<![\w.])(?P<name>{NAMES})(?P<equals>=|:\s*)(?P<value>\(left out\)|[^&\s,}}]+)", re.IGNORECASE)
# how the hub, OpenAI-like services, GitHub and AWS begin theirs
TOKENS = re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|AKIA)[A-Za-z0-9_-]{12,}")


def without_credentials(text: str) -> str:
    """A text without the user and the password in its URIs (``scheme://user:password@host``)."""
    return re.sub(r"://[^/\s'\"]*@", "://", text)


def is_secret(name: str) -> bool:
    """Whether a key's last word, or an option's name, stands for a secret: ``api_key``, but not ``tokenizer``."""
    last = name.rpartition(".")[2]
    return IS_SECRET.fullmatch(last) is not None and NO_SECRETS.search(last) is None


def without_secrets(thing: Any) -> Any:
    """JSON without the values of keys that stand for secrets, and its texts without what looks like one."""
    if isinstance(thing, Mapping):
        return {
            name: LEFT_OUT if is_secret(str(name)) and value is not None else without_secrets(value)
            for name, value in thing.items()
        }
    if isinstance(thing, (list, tuple)):
        return [without_secrets(one) for one in thing]
    return _clean(thing) if isinstance(thing, str) else thing


def arguments_without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets, be they ``key=value``, ``--option=value`` or ``--option value``."""
    found: list[str] = []
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        follows = before.startswith("-") and "=" not in before and is_secret(before.lstrip("-"))
        found.append(LEFT_OUT if follows else _clean(argument))
    return found


def _clean(text: str) -> str:
    def left_out(found: re.Match[str]) -> str:
        return found["name"] + found["equals"] + LEFT_OUT if is_secret(found["name"].lstrip("-")) else found[0]

    return TOKENS.sub(LEFT_OUT, GIVEN.sub(left_out, without_credentials(text)))
