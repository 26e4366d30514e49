"""Language models that answer one question: behind OpenAI's interface, or in a folder on this machine.

Every answer is kept on disk as soon as it is there, so that an interrupted build asks nothing twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import openai
from openai.types.chat import ChatCompletion

from saferclip.benchmark.journal import Journal
from saferclip.config import ChatModelSettings, EndpointSettings
from saferclip.io import DataError
from saferclip.provenance import digest

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, str]]
KEPT = "what was answered is kept, start again to go on"
# How an answer's form is asked for, best first; servers differ in what they know.
FORMS = ("json_schema", "json_object", "text")
UNKNOWN_FORM = {400, 415, 422, 501}


class Answer(NamedTuple):
    """What a model said; ``finish`` is 'stop', 'length' (it was cut off) or 'refusal'."""

    text: str
    finish: str
    model: str


class Chat(Protocol):
    """A language model."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What an answer depends on, besides the question."""

    @property
    def concurrency(self) -> int:
        """Questions that may be asked at once."""

    def answer(self, messages: Messages, schema: Mapping[str, Any], seed: int) -> Answer:
        """Answer in JSON of that schema, if all goes well. Raises DataError if there can be no answer at all."""


class Endpoint:
    """A server that speaks OpenAI's interface."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._client = openai.OpenAI(
            base_url=settings.base_url,
            api_key=_key(settings.api_key_variable),
            timeout=settings.timeout,
            max_retries=settings.retries,
        )
        self._form = 0
        self.concurrency = settings.concurrency
        # Not the address: the same model at another one gives the same answers.
        self.identity = settings.model_dump(include={"model", "temperature", "max_tokens"})

    def answer(self, messages: Messages, schema: Mapping[str, Any], seed: int) -> Answer:
        first = self._form
        for form in range(first, len(FORMS)):
            try:
                completion = self._complete(messages, FORMS[form], schema, seed)
            except openai.APIStatusError as error:
                if error.status_code in UNKNOWN_FORM and form + 1 < len(FORMS):
                    continue
                raise DataError(self._explained(error)) from error
            except (openai.OpenAIError, ValueError) as error:
                raise DataError(self._explained(error)) from error
            if form > first:
                logger.warning("%s: no %s; asking for %s", self._settings.base_url, FORMS[first], FORMS[form])
                self._form = max(self._form, form)
            return self._read(completion)
        raise AssertionError("the last form either answers or raises")

    def _complete(self, messages: Messages, form: str, schema: Mapping[str, Any], seed: int) -> Any:
        format: dict[str, Any] = {"type": form}
        if form == "json_schema":
            format["json_schema"] = {"name": "answer", "strict": True, "schema": dict(schema)}
        settings = self._settings
        create: Callable[..., Any] = self._client.chat.completions.create
        return create(
            model=settings.model,
            messages=list(messages),
            temperature=settings.temperature,
            max_tokens=settings.max_tokens,
            seed=seed,
            **({} if form == "text" else {"response_format": format}),
        )

    def _read(self, completion: Any) -> Answer:
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise DataError(f"{self._settings.base_url}: does not answer as OpenAI's interface does; correct base_url")
        choice = completion.choices[0]
        refusal = choice.message.refusal
        finish = "refusal" if refusal or choice.finish_reason == "content_filter" else str(choice.finish_reason)
        return Answer(refusal or choice.message.content or "", finish, completion.model)

    def _explained(self, error: Exception) -> str:
        """What a failed request means for a user."""
        settings = self._settings
        variable = settings.api_key_variable or "the variable named by endpoint.api_key_variable"
        said = getattr(error, "message", error)
        meanings = {
            openai.AuthenticationError: f"access is denied; set {variable} to a valid key",
            openai.PermissionDeniedError: f"access is denied; set {variable} to a key that may use the model",
            openai.NotFoundError: f"not found ({said}); correct endpoint.base_url and endpoint.model",
            openai.RateLimitError: f"too many requests; lower endpoint.concurrency or raise endpoint.retries; {KEPT}",
            openai.APIStatusError: f"the server does not answer the question ({said}); {KEPT}",
            openai.APITimeoutError: f"no answer within {settings.timeout:g} s; raise endpoint.timeout; {KEPT}",
            openai.APIConnectionError: f"cannot be reached; start the server, or correct endpoint.base_url; {KEPT}",
            Exception: f"does not answer as OpenAI's interface does ({said}); correct endpoint.base_url",
        }
        meaning = next(text for kind, text in meanings.items() if isinstance(error, kind))
        return f"{settings.base_url}, model '{settings.model}': {meaning}"


def _key(variable: str | None) -> str:
    """The API key in an environment variable; raises DataError if it is not there."""
    if variable is None:
        return "none"  # the client wants one, servers of one's own do not
    key = os.environ.get(variable)
    if not key:
        raise DataError(f"the environment variable {variable} holds no key; set it, or leave out api_key_variable")
    return key


class ChatModel:
    """A chat model in a local folder; loaded when it is first asked."""

    concurrency = 1

    def __init__(self, settings: ChatModelSettings, folder: Path, version: str | None) -> None:
        self._settings = settings
        self._folder = folder
        self._loaded: tuple[Any, Any] | None = None
        chosen = settings.model_dump(include={"model", "temperature", "max_tokens", "precision"})
        self.identity = {**chosen, "version": version}

    def answer(self, messages: Messages, schema: Mapping[str, Any], seed: int) -> Answer:  # noqa: ARG002
        import torch

        tokenizer, model = self._parts()
        prompt = tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        sampling: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if self._settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": self._settings.temperature}
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            generated = model.generate(
                **prompt, **sampling, max_new_tokens=self._settings.max_tokens, pad_token_id=tokenizer.eos_token_id
            )
        said = generated[0, prompt["input_ids"].shape[1] :]
        finish = "length" if len(said) >= self._settings.max_tokens else "stop"
        return Answer(tokenizer.decode(said, skip_special_tokens=True), finish, self._settings.model)

    def _parts(self) -> tuple[Any, Any]:
        """Tokenizer and model. Raises DataError if the folder holds no chat model."""
        if self._loaded is None:
            self._loaded = _load_chat_model(self._folder, self._settings.precision)
        return self._loaded


def _load_chat_model(folder: Path, precision: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    placed = {"device_map": "auto"} if torch.cuda.is_available() else {}  # over all GPUs that there are
    load_tokenizer: Callable[..., Any] = AutoTokenizer.from_pretrained
    try:
        tokenizer = load_tokenizer(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype, **placed
        )
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: holds no chat model in transformers' format: {error}") from error
    if not tokenizer.chat_template:
        raise DataError(f"{folder}: its tokenizer has no chat template; take a model that was tuned for chats")
    model.train(False)
    return tokenizer, model


class Remembered:
    """Another model's answers, each kept in a file as soon as it is there."""

    def __init__(self, chat: Chat, file: Path) -> None:
        self._chat = chat
        self._journal = Journal(file)
        self.identity, self.concurrency = chat.identity, chat.concurrency

    def answer(self, messages: Messages, schema: Mapping[str, Any], seed: int) -> Answer:
        key = digest([self.identity, list(messages), schema, seed])
        known = self._journal.entries.get(key)
        if known is None:
            known = {"key": key, **self._chat.answer(messages, schema, seed)._asdict()}
            self._journal.add(known)
        return Answer(known["text"], known["finish"], known["model"])
