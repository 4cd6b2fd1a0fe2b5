"""What must be told with a figure: bundle, prompts, sampling, machine and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline.bench_measure import Measured, Question
from paceline.machine import cpu_model, peak_memory_text, versions
from paceline.options import Loading
from paceline.sampling_text import sampling_words


@dataclass(frozen=True, slots=True)
class Facts:
    """How a bench was made."""

    bundle: str
    quant: str
    loading: Loading
    context: int
    question: Question
    prompts: str
    device: str
    placed: Mapping[str, str]
    """What `--device auto` chose, and why."""
    mirrored: str | None
    """What `--mirror auto` chose, and why."""

    def as_dict(self, measured: Measured, repeats: int) -> dict[str, Any]:
        """Everything of `bench --json` but the rows."""
        from paceline.memory.budget import peak_memory
        from paceline.runtime.model.kernels import kernels
        from paceline.runtime.model.processors import default_threads

        asked = self.question
        return {
            "bundle": self.bundle,
            "quant": self.quant,
            "context": self.context,
            "prompts": self.prompts,
            "repeats": repeats,
            "max_tokens": asked.max_tokens,
            "temperature": asked.sampling.temperature,
            "accept": asked.accept,
            "seed": asked.seed,
            "skipped": [{"prompt": task.name, "reason": reason} for task, reason in measured.skipped],
            "machine": {
                "cpu": cpu_model(),
                "device": self.device,
                "placed": dict(self.placed),
                "kernels": kernels().in_use,
                "threads": self.loading.threads or default_threads(),
                "mirror": self.loading.mirror,
                "mirrored": self.mirrored,
                "versions": versions(),
            },
            "peak_rss_bytes": peak_memory(),
        }

    def title(self, measured: Measured, first: bool = False) -> str:
        """Two lines for a figure. first: of the answers to the first prompt that was asked."""
        weights = {"none": "16-bit", "keep": "blocks of a GGUF file"}.get(self.quant, self.quant)
        asked = f"the prompt {measured.runs[0].task.name!r}" if first else _prompts(measured)
        return f"{self.bundle} ({weights}), {asked} ({self.prompts}), {self._sampling()}\n{cpu_model()}"

    def _sampling(self) -> str:
        return sampling_words(self.question.sampling, self.question.accept)

    def lines(self, measured: Measured, repeats: int) -> list[str]:
        """The same as text."""
        facts = self.as_dict(measured, repeats)
        machine = facts["machine"]
        most = self.question.max_tokens
        prompts = f"{_prompts(measured)} ({self.prompts})"
        again = f", {repeats} times" if repeats > 1 else ""
        lines = [
            f"{self.bundle}: {prompts}{again}, up to {most} tokens each, {self._sampling()}",
            f"{machine['cpu']}, {machine['threads']} threads, device {machine['device']}",
            *(f"auto: {why}" for why in self.placed.values()),
            f"kernels on the cpu: {machine['kernels']}",
            ", ".join(f"{name} {number}" for name, number in machine["versions"].items()),
            f"peak memory of the process, all drafters loaded: {peak_memory_text(facts['peak_rss_bytes'])}",
        ]
        if self.mirrored is not None:
            lines.append(f"mirror auto: {self.mirrored}")
        if machine["mirror"] == "on" or (self.mirrored or "").startswith("on"):
            lines.append(
                "with the mirror the model has a thread less, for none, too: bench without it as well"
            )
        if measured.skipped:
            lines.append(
                f"skipped {len(measured.skipped)} prompts, the first because {measured.skipped[0][1]}"
            )
        return lines


def _prompts(measured: Measured) -> str:
    asked = len({run.task.name for run in measured.runs})
    return f"{asked} prompt{'s' * (asked != 1)}"
