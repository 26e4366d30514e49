"""A language model to rehearse with: a scripted server that speaks OpenAI's interface, and small models and data sets.

    python tests/rehearsal/llm.py --port 0        # prints its address, http://127.0.0.1:<port>/v1

The server answers the NSFW-Caps builder's prompts with harmless minimal edits, such as "... next to a pistol", unless
a test scripts other answers. The functions ``write_...`` write random models and small data sets as they are published.
"""

from __future__ import annotations

import argparse
import json
import re
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# What stands for each category here; the others are never chosen.
STAND_INS = {"violence": "a pistol", "illegal activity": "a syringe", "shocking": "a skull"}
FORMATS = ("json_schema", "json_object", "text")
MODEL = "rehearsal-editor"

# An answer in place of the server's own: the text to say, or a function that answers the request itself.
Scripted = str | Callable[["Handler"], None]


def harmless_answer(prompt: str) -> str:
    """The answer to one of the builder's two prompts, told apart by the lines that state their facts."""
    caption = _line(prompt, "Caption")
    category = _line(prompt, "Category")
    if category:
        stand_in = STAND_INS.get(category, "a radio")
        return json.dumps({"category": category, "caption": f"{caption.rstrip(' .')} next to {stand_in}"})
    offered = [name for name in re.findall(r"^- ([a-z-]+(?: [a-z]+)?):", prompt, re.MULTILINE) if name in STAND_INS]
    return json.dumps({"category": offered[zlib.crc32(caption.encode()) % len(offered)]})


def _line(prompt: str, name: str) -> str:
    found = re.findall(rf"^{name}: (.*)$", prompt, re.MULTILINE)
    return found[-1].strip() if found else ""


@dataclass
class LanguageModel:
    """The server, for use as a context manager: runs in threads of this process until the block is left."""

    port: int = 0
    formats: tuple[str, ...] = FORMATS  # of answers that can be asked for; others are answered with 400
    answer: Callable[[str], str] = harmless_answer
    script: deque[Scripted] = field(default_factory=deque)  # the next answers
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # requests for anything else, as of a proxy: method and address

    def __post_init__(self) -> None:
        model = self

        class Bound(Handler):
            language_model = model

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Bound)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self) -> LanguageModel:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        """Serve in the calling thread, until interrupted."""
        self._server.serve_forever()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    language_model: LanguageModel
    protocol_version = "HTTP/1.1"
    body: dict[str, Any]

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:  # a client that went away
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; ``LanguageModel.requests`` remembers."""

    def do_POST(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        model = self.language_model
        model.requests.append(self.body)
        model.headers.append({name.lower(): value for name, value in self.headers.items()})
        if urlsplit(self.path).path != "/v1/chat/completions":
            self.do_GET()
        elif self.body.get("response_format", {}).get("type", "text") not in model.formats:
            self.refuse(400, "response_format is not supported by this server")
        else:
            self._answer()

    def do_GET(self) -> None:
        self.language_model.strays.append(f"{self.command} {self.path}")
        self.refuse(404, f"no such path: {self.path}")

    do_HEAD = do_CONNECT = do_GET

    def _answer(self) -> None:
        model = self.language_model
        scripted = model.script.popleft() if model.script else None
        if callable(scripted):
            scripted(self)
        else:
            prompt = "\n".join(message["content"] for message in self.body["messages"])
            self.say(scripted if scripted is not None else model.answer(prompt))

    def say(self, text: str | None, finish: str = "stop", **message: Any) -> None:
        """Answer as a model would."""
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        kind = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": MODEL}
        self.send(200, {**kind, "choices": [choice], "usage": usage})

    def refuse(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        """Answer as a server in trouble would."""
        self.send(status, {"error": {"message": message, "type": "error", "code": status}}, headers)

    def send(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        """Send one JSON value."""
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


def refusing(status: int, message: str = "try again", **headers: str) -> Scripted:
    """An answer with that status; ``retry_after="0.01"`` becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.refuse(status, message, named)


def sleeping(seconds: float) -> Scripted:
    """No answer for that long, longer than a client waits; then the connection ends."""

    def answer(handler: Handler) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return answer


def declining(text: str) -> Scripted:
    """A refusal in the field that OpenAI's interface has for it."""
    return lambda handler: handler.say(None, refusal=text)


def cut_off(text: str) -> Scripted:
    """An answer that ended because it became too long."""
    return lambda handler: handler.say(text, finish="length")


# Small models -----------------------------------------------------------------------------------

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")


def write_tokenizer(path: Path) -> int:
    """A byte-level tokenizer that has learnt no merges, as tokenizer.json; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*alphabet, *SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return len(vocabulary)


def write_chat_model(folder: Path, seed: int = 0) -> Path:
    """A chat model of the Llama architecture with random weights, in transformers' format; returns the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    size = write_tokenizer(folder / "tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(folder / "tokenizer.json"), eos_token=SPECIAL[0], pad_token=SPECIAL[0]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=4096, **sizes, **ends))
    model.save_pretrained(folder)
    return folder


def write_jina(folder: Path, width: int = 64, mask: bool = True, pooled: bool = True, seed: int = 0) -> Path:
    """A text model laid out as jina-clip-v1's ONNX one: captions with like letters are alike; returns the folder.

    ``mask``: whether it wants an attention mask. ``pooled``: whether it gives one vector a text, or one a token.
    """
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = write_tokenizer(folder / "tokenizer.json")
    table = np.random.default_rng(seed).standard_normal((size, width)).astype(np.float32)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["hidden"])]
    if pooled:
        nodes.append(helper.make_node("ReduceMean", ["hidden", "axes"], ["text_embeds"], keepdims=0))
    inputs = ["input_ids", *(["attention_mask"] if mask else [])]
    shape: list[str | int | None]
    name, shape = ("text_embeds", ["batch", width]) if pooled else ("hidden", ["batch", "sequence", width])
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info(given, TensorProto.INT64, ["batch", "sequence"]) for given in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(np.array([1]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "onnx/text_model.onnx")
    return folder


# Small data sets --------------------------------------------------------------------------------

DOMAINS = ("in-domain", "near-domain", "out-domain")


def write_nocaps(path: Path, captions: list[list[str]], address: str) -> Path:
    """NoCaps' validation file: ``captions`` holds those of each image, at ``<address>/val/``; returns the path."""
    images = [
        {
            "id": number,
            "license": 0,
            "coco_url": f"{address}/val/{number:016x}.jpg",
            "open_images_id": f"{number:016x}",
            "file_name": f"{number:016x}.jpg",
            "domain": DOMAINS[number % 3],
            "height": 64,
            "width": 64,
        }
        for number in range(len(captions))
    ]
    spoken = [(image, caption) for image, several in enumerate(captions) for caption in several]
    annotations = [{"id": number, "image_id": image, "caption": text} for number, (image, text) in enumerate(spoken)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"licenses": [], "info": {}, "images": images, "annotations": annotations}))
    return path


def write_release(path: Path, pairs: list[tuple[str, str, str]], address: str) -> Path:
    """The public NSFW-Caps in its four columns; a pair is safe caption, unsafe caption, category; returns the path.

    The ending chooses the kind of file: .csv, .json (one object a line), .jsonl or .parquet.
    """
    import pandas as pd

    table = pd.DataFrame(
        {
            "image_coco_url": [f"{address}/val/{number:016x}.jpg" for number in range(len(pairs))],
            "caption": [safe for safe, _, _ in pairs],
            "nsfw_caption": [unsafe for _, unsafe, _ in pairs],
            "chosen_category": [category for _, _, category in pairs],
        }
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        table.to_json(path, orient="records", lines=True)
    return path


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    model = LanguageModel(parser.parse_args().port)
    print(model.address, flush=True)
    model.serve()


if __name__ == "__main__":
    main()
