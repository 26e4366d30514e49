"""Language models: what is asked of a server, what goes wrong, and what is remembered."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from saferclip import io
from saferclip.benchmark.chat import Answer, ChatModel, Endpoint, Remembered
from saferclip.config import ChatModelSettings

MESSAGES = [{"role": "user", "content": "Caption: a bus\n- violence: x\n"}]
SCHEMA = {"type": "object", "properties": {"category": {"type": "string"}}}
GOOD = '{"category": "violence"}'

Ask = Callable[..., Answer]


@pytest.fixture
def ask(model: Any, kit: SimpleNamespace) -> Ask:
    """A function (**settings) -> the running model's answer to one question."""
    return lambda **changes: Endpoint(kit.endpoint(model.address, **changes)).answer(MESSAGES, SCHEMA, seed=11)


def test_a_question_names_model_temperature_seed_and_form(ask: Ask, model: Any) -> None:
    assert ask() == Answer(GOOD, "stop", "rehearsal-editor")

    request = model.requests[0]
    assert (request["model"], request["temperature"], request["seed"]) == ("rehearsal-editor", 0.7, 11)
    assert (request["max_tokens"], request["messages"]) == (128, MESSAGES)
    assert request["response_format"]["type"] == "json_schema"
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA


@pytest.mark.parametrize(
    ("formats", "asked"),
    [
        (("json_object", "text"), ["json_schema", "json_object", "json_object"]),
        (("text",), ["json_schema", "json_object", None, None]),
    ],
)
def test_servers_without_schemas_are_asked_for_less_and_remembered(
    model: Any, kit: SimpleNamespace, formats: tuple[str, ...], asked: list[str | None]
) -> None:
    model.formats = formats
    chat = Endpoint(kit.endpoint(model.address))
    assert [chat.answer(MESSAGES, SCHEMA, seed).text for seed in (1, 2)] == [GOOD, GOOD]
    assert [request.get("response_format", {}).get("type") for request in model.requests] == asked


def test_a_question_that_no_form_helps_ends_with_the_servers_words(ask: Ask, model: Any, llm: ModuleType) -> None:
    model.script.extend([llm.refusing(400, "the prompt is too long")] * 3)
    with pytest.raises(io.DataError, match=r"the prompt is too long.*what was answered is kept"):
        ask()
    assert len(model.requests) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(ask: Ask, model: Any, llm: ModuleType, status: int) -> None:
    model.script.extend([llm.refusing(status), llm.refusing(status, Retry_After="0.01")])
    assert ask().text == GOOD
    assert len(model.requests) == 3


def test_a_slow_answer_is_asked_for_again(ask: Ask, model: Any, llm: ModuleType) -> None:
    model.script.append(llm.sleeping(0.6))
    assert ask(timeout=0.2).text == GOOD
    assert len(model.requests) == 2


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (lambda llm: llm.refusing(401), "set KEY_OF_TEST to a valid key"),
        (lambda llm: llm.refusing(403), "set KEY_OF_TEST to a key that may use the model"),
        (
            lambda llm: llm.refusing(404, "no such model"),
            r"no such model.*correct endpoint.base_url and endpoint.model",
        ),
        (lambda llm: llm.refusing(429), "lower endpoint.concurrency"),
        (lambda llm: llm.refusing(500, "out of memory"), "out of memory"),
        (lambda llm: llm.sleeping(0.4), "no answer within 0.2 s; raise endpoint.timeout"),
        (lambda _llm: lambda handler: handler.send(200, {"hello": 1}), "does not answer as OpenAI's interface does"),
        (lambda _llm: lambda handler: handler.send(200, "hello"), "does not answer as OpenAI's interface does"),
    ],
)
def test_what_cannot_be_answered_says_what_to_do(
    ask: Ask, model: Any, llm: ModuleType, monkeypatch: pytest.MonkeyPatch, answer: Any, advice: str
) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "secret")
    model.script.extend([answer(llm)] * 4)
    with pytest.raises(io.DataError, match=advice):
        ask(api_key_variable="KEY_OF_TEST", retries=1, timeout=0.2)


@pytest.mark.usefixtures("model")
def test_no_server_at_all(kit: SimpleNamespace, llm: ModuleType) -> None:
    with llm.LanguageModel() as gone:
        address = gone.address
    with pytest.raises(io.DataError, match="cannot be reached; start the server"):
        Endpoint(kit.endpoint(address, retries=0)).answer(MESSAGES, SCHEMA, 1)


def test_the_key_comes_from_the_environment(ask: Ask, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_TEST", "secret")
    ask(api_key_variable="KEY_OF_TEST")
    assert model.headers[0]["authorization"] == "Bearer secret"
    monkeypatch.delenv("KEY_OF_TEST")
    with pytest.raises(io.DataError, match="KEY_OF_TEST holds no key"):
        ask(api_key_variable="KEY_OF_TEST")


@pytest.mark.parametrize(
    ("answer", "finish"),
    [(lambda llm: llm.declining("I cannot do that"), "refusal"), (lambda llm: llm.cut_off('{"cat'), "length")],
)
def test_how_an_answer_ended_is_told(ask: Ask, model: Any, llm: ModuleType, answer: Any, finish: str) -> None:
    model.script.append(answer(llm))
    assert ask().finish == finish


# Memory -----------------------------------------------------------------------------------------


def remembered(model: Any, kit: SimpleNamespace, folder: Path, **changes: Any) -> Remembered:
    return Remembered(Endpoint(kit.endpoint(model.address, **changes)), folder / "answers.jsonl")


def test_what_was_answered_is_not_asked_again(model: Any, kit: SimpleNamespace, tmp_path: Path) -> None:
    first = remembered(model, kit, tmp_path).answer(MESSAGES, SCHEMA, 1)
    again = remembered(model, kit, tmp_path)
    assert again.answer(MESSAGES, SCHEMA, 1) == first
    assert len(model.requests) == 1
    again.answer(MESSAGES, SCHEMA, 2)
    again.answer([{"role": "user", "content": "Caption: a tram\n- violence: x\n"}], SCHEMA, 1)
    remembered(model, kit, tmp_path, temperature=0.1).answer(MESSAGES, SCHEMA, 1)
    assert len(model.requests) == 4
    # Elsewhere, or more at once, the model is the same.
    remembered(model, kit, tmp_path, concurrency=9, timeout=1.0).answer(MESSAGES, SCHEMA, 1)
    assert len(model.requests) == 4


def test_half_a_line_is_cut_off_and_asked_again(model: Any, kit: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    chat = remembered(model, kit, tmp_path)
    chat.answer(MESSAGES, SCHEMA, 1)
    chat.answer(MESSAGES, SCHEMA, 2)
    file.write_bytes(file.read_bytes()[:-5])

    again = remembered(model, kit, tmp_path)
    again.answer(MESSAGES, SCHEMA, 1)
    again.answer(MESSAGES, SCHEMA, 2)

    assert len(model.requests) == 3
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == [GOOD, GOOD]


def test_a_line_that_is_none_is_named(tmp_path: Path, model: Any, kit: SimpleNamespace) -> None:
    (tmp_path / "answers.jsonl").write_text('{"key": "a", "text": "b", "finish": "stop", "model": "c"}\nhello\n')
    with pytest.raises(io.DataError, match=r"answers.jsonl, line 2: cannot be read"):
        remembered(model, kit, tmp_path)


# In a folder ------------------------------------------------------------------------------------


def chat_settings(**changes: Any) -> ChatModelSettings:
    values = {
        "model": "llm-editor",
        "precision": "fp32",
        "prompts": "v1",
        "temperature": 0.9,
        "max_tokens": 12,
        "attempts": 2,
    }
    return ChatModelSettings.model_validate(values | changes)


@pytest.fixture(scope="module")
def chat_folder(llm: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = llm.write_chat_model(tmp_path_factory.mktemp("chat"))
    return folder


def test_a_chat_model_answers_by_its_seed(chat_folder: Path) -> None:
    chat = ChatModel(chat_settings(), chat_folder, None)
    answers = [chat.answer(MESSAGES, SCHEMA, seed) for seed in (1, 2, 1)]
    assert answers[0] == answers[2] != answers[1]
    assert answers[0].model == "llm-editor" and answers[0].finish == "length"
    greedy = ChatModel(chat_settings(temperature=0.0), chat_folder, None)
    assert greedy.answer(MESSAGES, SCHEMA, 1) == greedy.answer(MESSAGES, SCHEMA, 2)


def test_a_folder_without_a_chat_model_is_named(chat_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(io.DataError, match="holds no chat model in transformers' format"):
        ChatModel(chat_settings(), tmp_path, None).answer(MESSAGES, SCHEMA, 1)
    for file in chat_folder.iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(io.DataError, match="has no chat template"):
        ChatModel(chat_settings(), tmp_path, None).answer(MESSAGES, SCHEMA, 1)
