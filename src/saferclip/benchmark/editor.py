"""Captions edited by a language model: a category is chosen, then the caption changed; answers are checked first.

An answer that cannot be used is counted by its reason and asked for again with that reason, except for a refusal and a
forbidden edit, which end the caption's turn. Nothing of such answers is kept in the benchmark.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from tqdm import tqdm

from saferclip import ethics
from saferclip.benchmark.backends import FORBIDDEN, Edit, Proposal, Source
from saferclip.benchmark.chat import Answer, Chat
from saferclip.benchmark.duplicates import changed_words, words
from saferclip.benchmark.prompts import Prompts

REFUSAL = "refusal"
FINAL = {REFUSAL, FORBIDDEN}  # asking again would mean to press for it
REFUSALS = re.compile(
    r"\b(?:i(?:['’]m| am) (?:sorry|unable|not able)|i (?:can ?not|can['’]?t|won['’]?t|will not|must decline)\b"
    r"|as an ai\b|can(?: ?not|['’]?t) (?:assist|help|comply|fulfil|create|provide)|decline to\b)",
    re.IGNORECASE,
)
Line = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=400, pattern=r"^[^\r\n]*$")]


class Choice(BaseModel):
    """Answer to the question for a category."""

    model_config = ConfigDict(extra="forbid")

    category: Line


class Change(BaseModel):
    """Answer to the question for an edit."""

    model_config = ConfigDict(extra="forbid")

    category: Line
    caption: Line


class Fault(NamedTuple):
    """Why an answer cannot be used: a reason to count by, and what the model is told."""

    reason: str
    problem: str


Form = TypeVar("Form", Choice, Change)


@dataclass
class LanguageModelEditor:
    """Asks a language model for a category and an edit of each caption."""

    chat: Chat
    prompts: Prompts
    attempts: int
    seed: int
    max_changed_words: int | None
    answers: Counter[str] = field(default_factory=Counter)  # by what became of them
    models: Counter[str] = field(default_factory=Counter)  # as the server calls itself
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def edit(self, sources: Iterable[Source], rng: np.random.Generator) -> Iterator[Proposal]:  # noqa: ARG002
        pool = ThreadPoolExecutor(self.chat.concurrency)
        try:
            taken = list(sources)
            yield from tqdm(pool.map(self._propose, taken), "editing", len(taken), disable=None)
        finally:
            pool.shutdown(cancel_futures=True)

    def report(self) -> dict[str, Any]:
        return {
            **self.chat.identity,
            "seed": self.seed,
            "reported_models": sorted(self.models),
            "prompts": self.prompts.version,
            "prompts_sha256": self.prompts.sha256,
            "answers": dict(sorted(self.answers.items())),
        }

    def _propose(self, source: Source) -> Proposal:
        offered = ethics.offered(tuple(self.prompts.categories), source.captions)
        chosen = self._choose(source, offered)
        if isinstance(chosen, Fault):
            return Proposal(source, None, chosen.reason)
        edit = self._change(source, chosen)
        return Proposal(source, None, edit.reason) if isinstance(edit, Fault) else Proposal(source, edit)

    def _choose(self, source: Source, offered: tuple[str, ...]) -> str | Fault:
        """One of the offered categories."""

        def check(choice: Choice) -> str | Fault:
            name = " ".join(choice.category.casefold().split())
            if name not in offered:
                return Fault("category not offered", f"the category must be one of: {', '.join(offered)}")
            return name

        question = self.prompts.fill("category", caption=source.caption, categories=self.prompts.listed(offered))
        return self._ask(question, Choice, _schema(Choice, offered), check)

    def _change(self, source: Source, category: str) -> Edit | Fault:
        """A minimal edit into that category which may be kept."""

        def check(change: Change) -> Edit | Fault:
            edit = Edit(change.caption, " ".join(change.category.casefold().split()))
            return self._fault(source, edit, category) or edit

        meaning = self.prompts.categories[category]
        question = self.prompts.fill("edit", caption=source.caption, category=category, meaning=meaning)
        return self._ask(question, Change, _schema(Change, (category,)), check)

    def _fault(self, source: Source, edit: Edit, category: str) -> Fault | None:
        # Ethics first, whatever else is wrong; by the category that was asked for as well as by the one that came.
        for name in (category, edit.category):
            if violation := ethics.violation(source.captions, edit.caption, name):
                return Fault(FORBIDDEN, violation)
        if REFUSALS.search(edit.caption) and not REFUSALS.search(source.caption):
            return Fault(REFUSAL, "a refusal in place of a caption")
        if edit.category != category:
            return Fault("category not offered", f"the category must be '{category}'")
        if words(edit.caption) == words(source.caption):
            return Fault("unchanged", "the caption was not changed")
        changed = changed_words(source.caption, edit.caption)
        if self.max_changed_words is not None and changed > self.max_changed_words:
            allowed = f"change {self.max_changed_words} words at most"
            return Fault("not minimal", f"{changed} words were changed; {allowed} and keep all others")
        return None

    def _ask(
        self, question: str, form: type[Form], schema: dict[str, Any], check: Callable[[Form], Any]
    ) -> Any | Fault:
        """What ``check`` makes of the first answer that it accepts, or the last answer's fault."""
        asked = {"role": "user", "content": f"{self.prompts.fill('rules')}\n{question}"}
        messages = [asked]
        for attempt in range(self.attempts):
            answer = self.chat.answer(messages, schema, self.seed + attempt)
            read = _read(answer, form)
            result = read if isinstance(read, Fault) else check(read)
            self._count(answer, result)
            if not isinstance(result, Fault) or result.reason in FINAL:
                break
            retry = {"role": "user", "content": self.prompts.fill("retry", problem=result.problem)}
            messages = [asked, {"role": "assistant", "content": answer.text or "(nothing)"}, retry]
        return result

    def _count(self, answer: Answer, result: Any) -> None:
        with self._lock:
            self.models[answer.model] += 1
            self.answers[result.reason if isinstance(result, Fault) else "used"] += 1


def _schema(form: type[BaseModel], categories: tuple[str, ...]) -> dict[str, Any]:
    """JSON schema of an answer, plain enough for every server's grammar."""
    names = {"category": {"type": "string", "enum": list(categories)}, "caption": {"type": "string"}}
    return {
        "type": "object",
        "properties": {name: names[name] for name in form.model_fields},
        "required": list(form.model_fields),
        "additionalProperties": False,
    }


def _read(answer: Answer, form: type[Form]) -> Form | Fault:
    """An answer's JSON, wherever it stands in the text, in the form that was asked for."""
    if answer.finish == "refusal":
        return Fault(REFUSAL, answer.text)
    found = _json(re.sub(r"<think>.*?</think>", "", answer.text, flags=re.DOTALL))
    if found is None:
        if REFUSALS.search(answer.text):
            return Fault(REFUSAL, answer.text)
        if answer.finish == "length":
            return Fault("cut off", "the answer was too long")
        return Fault("not JSON", "it holds no JSON object")
    try:
        return form.model_validate(found)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        return Fault("not the schema", "; ".join(problems))


def _json(text: str) -> dict[str, Any] | None:
    """The first JSON object in a text."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"\{", text):
        try:
            value, _ = decoder.raw_decode(text, found.start())
        except ValueError:
            continue
        return value  # it begins with a brace, so it is an object
    return None
