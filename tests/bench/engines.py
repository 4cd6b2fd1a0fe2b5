"""One engine in a process of its own, driven over pipes: `verify_cost.py` starts it, nobody else needs to.

    python tests/bench/engines.py KIND MODEL THREADS CONTEXT

It imports only numpy and the engine's own package, so that every engine can live in an environment of its own.
Requests and answers are lines of JSON: {"do": "verify", "context": 128, "width": 8} or {"do": "decode",
"context": 128, "tokens": 16}; the answer is {"seconds": ...}. Verifying scores `width` new tokens behind
`context` old ones, gives the logits of every one of them, and takes them back. Decoding is greedy.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np

WIDEST = 64
PROMPT = np.random.default_rng(0).integers(300, 3900, 1 << 14).tolist()


class Engine(Protocol):
    """Holds a cache of some tokens. Room for WIDEST more is always there."""

    def fill(self, length: int) -> None:
        """Let the cache hold the first `length` tokens of PROMPT."""

    def verify(self, length: int, width: int) -> float:
        """Seconds that the logits of `width` tokens after the first `length` take; the cache is as before."""

    def decode(self, length: int, tokens: int) -> float:
        """Seconds a token of plain decoding behind `length` tokens; the cache is as before."""


class Paceline:
    """The target of a bundle without a drafter; decoding is the whole loop that a user meets."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        from paceline.runtime.loading import load
        from paceline.runtime.tree import TokenTree

        self._session = load(model, drafter="none", threads=threads, context=context, max_nodes=WIDEST)
        self._target, self._chain = self._session._target, TokenTree.chain

    def fill(self, length: int) -> None:
        kept = self._target.keep_common(PROMPT[:length])
        self._target.prefill(PROMPT[kept:length])

    def verify(self, length: int, width: int) -> float:
        tree = self._chain(PROMPT[length : length + width])
        begun = time.perf_counter()
        self._target.score(tree)
        return time.perf_counter() - begun

    def decode(self, length: int, tokens: int) -> float:
        events = iter(self._session.generate(PROMPT[:length], max_tokens=tokens + 1))
        next(events)
        begun = time.perf_counter()
        count = sum(event.token is not None for event in events)
        seconds = time.perf_counter() - begun
        self._target.rewind(length - 1)
        self.fill(length)
        return seconds / count


class OrtGenai:
    """onnxruntime-genai: its generator appends tokens and rewinds."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(model)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._og, self._model, self._context = og, og.Model(config), context
        self._generator = self.generator(context, min_length=context)
        self._length = 0

    def generator(self, length: int, **options: Any) -> Any:
        """An empty one with room for so many tokens."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=length, do_sample=False, **options)
        return self._og.Generator(self._model, parameters)

    def fill(self, length: int) -> None:
        if length < self._length:
            self._generator.rewind_to(length)
        elif length > self._length:
            self._generator.append_tokens(PROMPT[self._length : length])
        self._length = length

    def verify(self, length: int, width: int) -> float:
        begun = time.perf_counter()
        self._generator.append_tokens(PROMPT[length : length + width])
        seconds = time.perf_counter() - begun
        self._generator.rewind_to(length)
        return seconds

    def decode(self, length: int, tokens: int) -> float:
        # The first call only samples from the logits that are there, the model runs from the second on.
        self._generator.rewind_to(length - 1)
        self._generator.append_tokens(PROMPT[length - 1 : length])
        self._generator.generate_next_token()
        begun = time.perf_counter()
        for _ in range(tokens):
            self._generator.generate_next_token()
        seconds = time.perf_counter() - begun
        self._generator.rewind_to(length)
        return seconds / tokens


class LlamaCpp:
    """llama.cpp through the low-level binding of llama-cpp-python, logits of every row asked for."""

    def __init__(self, model: str, threads: int, context: int) -> None:
        import llama_cpp as c

        self._c = c
        c.llama_log_set(_silent(c), None)
        c.llama_backend_init()
        loading = c.llama_model_default_params()
        # With AMX the repacked buffers of llama-cpp-python 0.3.36 crashed; the plain ones run.
        loading.use_extra_bufts = "amx_int8" not in _processor_flags()
        handle = c.llama_model_load_from_file(model.encode(), loading)
        if handle is None:
            raise SystemExit(f"llama.cpp cannot load {model}")
        parameters = c.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_threads = parameters.n_threads_batch = threads
        self._context = c.llama_init_from_model(handle, parameters)
        self._memory = c.llama_get_memory(self._context)
        self._vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(handle))
        self._batch = c.llama_batch_init(512, 0, 1)
        self._length = 0

    def fill(self, length: int) -> None:
        self._cut(min(length, self._length))
        while self._length < length:
            self._run(PROMPT[self._length : min(length, self._length + 512)], every=False)

    def verify(self, length: int, width: int) -> float:
        begun = time.perf_counter()
        self._run(PROMPT[length : length + width], every=True)
        seconds = time.perf_counter() - begun
        self._cut(length)
        return seconds

    def decode(self, length: int, tokens: int) -> float:
        token = PROMPT[length]
        begun = time.perf_counter()
        for _ in range(tokens):
            self._run([token], every=True)
            logits = self._c.llama_get_logits_ith(self._context, 0)
            token = int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())
        seconds = time.perf_counter() - begun
        self._cut(length)
        return seconds / tokens

    def _run(self, tokens: list[int], every: bool) -> None:
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, self._length + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every or i == len(tokens) - 1
        if self._c.llama_decode(self._context, batch):
            raise SystemExit("llama.cpp cannot decode the batch")
        self._c.llama_synchronize(self._context)
        self._length += len(tokens)

    def _cut(self, length: int) -> None:
        self._c.llama_memory_seq_rm(self._memory, 0, length, -1)
        self._length = length


def _processor_flags() -> str:
    """What Linux says of the processor; elsewhere nothing."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _silent(c: Any) -> Any:
    @c.llama_log_callback
    def nothing(*_: Any) -> None:
        pass

    _kept.append(nothing)
    return nothing


_kept: list[Any] = []


class OpenVino:
    """The stateful model as OpenVINO compiles it; its state is put back to the prompt before every call.

    OpenVINO GenAI's pipeline runs the same model, but gives no logits of several tokens. Decoding through it
    was measured at 70 tokens a second where this loop has 67.
    """

    def __init__(self, model: str, threads: int, context: int) -> None:
        import openvino as ov

        self._ov = ov
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = ov.Core().compile_model(f"{model}/openvino_model.xml", "CPU", settings)
        self._names = {i.get_any_name() for i in compiled.inputs}
        self._request = compiled.create_infer_request()
        self._length, self._saved = 0, {}  # type: ignore[var-annotated]

    def fill(self, length: int) -> None:
        self._request.reset_state()
        self._length = 0
        self._run(PROMPT[:length])
        self._saved = {s.name: np.array(s.state.data) for s in self._request.query_state()}

    def verify(self, length: int, width: int) -> float:
        self._restore(length)
        tokens = PROMPT[length : length + width]
        begun = time.perf_counter()
        self._run(tokens)
        return time.perf_counter() - begun

    def decode(self, length: int, tokens: int) -> float:
        self._restore(length)
        token = PROMPT[length]
        begun = time.perf_counter()
        for _ in range(tokens):
            token = int(self._run([token])[0, -1].argmax())
        return (time.perf_counter() - begun) / tokens

    def _restore(self, length: int) -> None:
        for state in self._request.query_state():
            state.state = self._ov.Tensor(self._saved[state.name])
        self._length = length
        self._run([PROMPT[length]])  # the state that was put in is copied into the engine's own form here
        self._length = length + 1

    def _run(self, tokens: list[int]) -> Any:
        n, past = len(tokens), self._length
        feed = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, past + n), np.int64),
            "position_ids": np.arange(past, past + n, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({k: v for k, v in feed.items() if k in self._names}, share_inputs=True)
        self._length += n
        return self._request.get_output_tensor(0).data


KINDS: dict[str, Any] = {
    "paceline": Paceline,
    "onnxruntime-genai": OrtGenai,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
}


def main() -> None:
    """Load, say so, then answer a request a line until the pipe is closed."""
    kind, model, threads, context = sys.argv[1:]
    try:
        engine: Engine = KINDS[kind](model, int(threads), int(context))
    except ImportError as error:
        sys.exit(f"{kind} is not installed: {error}")
    held = 0

    def answer(**values: Any) -> None:
        print(json.dumps(values), flush=True)

    answer(ready=True)
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["context"] != held:
            held = asked["context"]
            engine.fill(held)
        if asked["do"] == "verify":
            answer(seconds=engine.verify(held, asked["width"]))
        else:
            answer(seconds=engine.decode(held, asked["tokens"]))


if __name__ == "__main__":
    main()
