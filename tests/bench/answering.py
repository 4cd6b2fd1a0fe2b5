"""An engine that answers prompts, in a process of its own: `spec_bench.py` starts it, nobody else needs to.

    python tests/bench/answering.py KIND MODEL THREADS CONTEXT

Requests and answers are lines of JSON. {"do": "answer", "prompt": [ids], "tokens": 256, "ends": [ids], "lookup": 2}
gives {"tokens": [ids], "ended": true, "first": s, "seconds": s, "rounds": n}: greedy, `first` seconds from the
start to the first token, `seconds` from there to the last; `lookup` is how many tokens the engine's prompt lookup
drafts, 0 for plain decoding. {"do": "perplexity", "ids": [ids], "window": 1024} gives {"perplexity": x}, null where
the engine gives no logits of a whole prompt.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from engines import LlamaCpp, OpenVino, OrtGenai

_BATCH = 512


class AnsweringLlamaCpp(LlamaCpp):
    """Its own loop over the low-level binding: `Llama.generate` copies the logits of a whole context where it drafts.

    What is proposed comes from llama-cpp-python's own LlamaPromptLookupDecoding.
    """

    def answer(self, prompt: list[int], tokens: int, ends: list[int], lookup: int) -> dict[str, Any]:
        """See above."""
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        drafter = LlamaPromptLookupDecoding(num_pred_tokens=lookup) if lookup else None
        text = np.empty(len(prompt) + tokens, np.intc)
        text[: len(prompt)] = prompt
        begun = time.perf_counter()
        self._cut(0)
        self._read(prompt)
        said, rounds = [self._best(-1)], 0
        first = time.perf_counter()
        while said[-1] not in ends and len(said) < tokens:
            text[len(prompt) + len(said) - 1] = said[-1]
            room = tokens - len(said) - 1
            draft = drafter(text[: len(prompt) + len(said)])[:room].tolist() if drafter and room else []
            length = self._length
            self._run([said[-1], *draft], every=True)
            rounds += 1
            for i in range(len(draft) + 1):
                said.append(self._best(i))
                text[len(prompt) + len(said) - 1] = said[-1]
                if said[-1] in ends or i == len(draft) or said[-1] != draft[i]:
                    break
            self._cut(length + i + 1)
        return _told(said, ends, begun, first, rounds)

    def perplexity(self, ids: list[int], window: int) -> float | None:
        """Over windows of so many tokens, each from an empty cache."""

        def rows(part: Sequence[int]) -> Any:
            self._cut(0)
            return np.concatenate(
                [self._logits(part[at : at + _BATCH]) for at in range(0, len(part), _BATCH)]
            )

        return _perplexity(rows, ids, window)

    def _read(self, tokens: list[int]) -> None:
        for at in range(0, len(tokens), _BATCH):
            self._run(tokens[at : at + _BATCH], every=False)

    def _logits(self, tokens: Sequence[int]) -> Any:
        self._run(list(tokens), every=True)
        shape = (len(tokens), self._vocab)
        return np.ctypeslib.as_array(self._c.llama_get_logits(self._context), shape).copy()

    def _best(self, row: int) -> int:
        logits = self._c.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab,)).argmax())


class AnsweringOrtGenai(OrtGenai):
    """A generator for each answer: its memory is taken before the clock starts."""

    def answer(self, prompt: list[int], tokens: int, ends: list[int], lookup: int) -> dict[str, Any]:
        """Plain decoding only."""
        generator = self.generator(min(self._context, len(prompt) + tokens))
        begun = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        said, first = [int(generator.get_next_tokens()[0])], time.perf_counter()
        while said[-1] not in ends and len(said) < tokens and not generator.is_done():
            generator.generate_next_token()
            said.append(int(generator.get_next_tokens()[0]))
        return _told(said, ends, begun, first, len(said) - 1)

    def perplexity(self, ids: list[int], window: int) -> float | None:
        """None where the graph gives the logits of the last token only."""

        def rows(part: Sequence[int]) -> Any:
            generator = self.generator(self._context)
            generator.append_tokens(list(part))
            return np.array(generator.get_output("logits"))[0]

        return _perplexity(rows, ids, window)


class AnsweringOpenVino(OpenVino):
    """The loop of `engines.py`: OpenVINO GenAI's pipeline runs the same compiled model."""

    def answer(self, prompt: list[int], tokens: int, ends: list[int], lookup: int) -> dict[str, Any]:
        """Plain decoding only."""
        begun = time.perf_counter()
        said = [int(self._begin(prompt)[0, -1].argmax())]
        first = time.perf_counter()
        while said[-1] not in ends and len(said) < tokens:
            said.append(int(self._run([said[-1]])[0, -1].argmax()))
        return _told(said, ends, begun, first, len(said) - 1)

    def perplexity(self, ids: list[int], window: int) -> float | None:
        """None where the graph gives the logits of the last token only."""
        return _perplexity(lambda part: np.array(self._begin(list(part)))[0], ids, window)

    def _begin(self, tokens: list[int]) -> Any:
        self._request.reset_state()
        self._length = 0
        return self._run(tokens)


def _told(said: list[int], ends: list[int], begun: float, first: float, rounds: int) -> dict[str, Any]:
    ended = said[-1] in ends
    return {
        "tokens": said[: len(said) - ended],
        "ended": ended,
        "first": first - begun,
        "seconds": time.perf_counter() - first,
        "rounds": rounds,
    }


def _perplexity(rows: Callable[[Sequence[int]], Any], ids: list[int], window: int) -> float | None:
    loss, count = 0.0, 0
    for at in range(0, len(ids) - 1, window):
        part = ids[at : at + window]
        logits = rows(part)
        if len(logits) != len(part):
            return None
        for row, token in zip(logits[:-1], part[1:], strict=True):
            wide = row.astype(np.float64)
            loss += float(np.log(np.exp(wide - wide.max()).sum()) + wide.max() - wide[token])
            count += 1
    return float(np.exp(loss / count))


KINDS: dict[str, Any] = {
    "llama.cpp": AnsweringLlamaCpp,
    "onnxruntime-genai": AnsweringOrtGenai,
    "openvino": AnsweringOpenVino,
}


def main() -> None:
    """Load, say so, then answer a request a line until the pipe is closed."""
    kind, model, threads, context = sys.argv[1:]
    if kind not in KINDS:
        sys.exit(f"{kind} is none of {', '.join(KINDS)}")
    try:
        engine = KINDS[kind](model, int(threads), int(context))
    except ImportError as error:
        sys.exit(f"{kind} is not installed: {error}")
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        do = asked.pop("do")
        told = engine.answer(**asked) if do == "answer" else {"perplexity": engine.perplexity(**asked)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
