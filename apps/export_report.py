"""What `paceline export` tells of what it made: as text, and as an object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from paceline.export.recipe import Recipe
    from paceline.export.report import ExitReport, HeadReport, PartReport, Report, SkipReport, SplitReport
    from paceline.runtime.manifest import Part


def as_dict(report: Report) -> dict[str, Any]:
    """The object of `export --json`."""
    from paceline.memory.budget import peak_memory

    return {
        "folder": str(report.folder),
        "name": report.manifest.name,
        "licence": report.manifest.licence,
        "bytes": report.bytes,
        "seconds": round(report.seconds, 3),
        "notes": list(report.notes),
        "peak_rss_bytes": peak_memory(),
        "parts": {name: _part_dict(made) for name, made in report.parts.items()},
        "heads": {name: _head_dict(made) for name, made in report.heads.items()},
        "skips": {name: _skip_dict(made) for name, made in report.skips.items()},
        "exits": {name: _exit_dict(made) for name, made in report.exits.items()},
        "split": None if report.split is None else _split_dict(report.split),
    }


def _part_dict(made: PartReport) -> dict[str, Any]:
    part, agreement = made.part, made.agreement
    found: dict[str, Any] = {
        "architecture": part.architecture,
        "parameters": part.parameters,
        "quant": part.quant,
        "block": part.block,
        "bytes": made.bytes,
        "nodes_per_layer": part.nodes_per_layer,
        "max_logit_error": agreement.largest,
        "relative_logit_error": agreement.relative,
        "spread": agreement.spread,
        "top1_agreement": agreement.top1,
        "rows_checked": agreement.rows,
        "matrix_error": made.matrix_error,
        "calibrated": made.calibrated,
        "bits": None if made.recipe is None else round(made.recipe.bits, 3),
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }
    if made.loss is not None:
        loss = made.loss
        found["perplexity"] = {"torch": loss.before, "bundle": loss.after, "tokens": loss.tokens}
    return found


def _head_dict(made: HeadReport) -> dict[str, Any]:
    part, agreement = made.part, made.agreement
    return {
        "method": part.method,
        "parameters": part.parameters,
        "quant": part.quant,
        "bytes": made.bytes,
        "vocabulary": part.vocab,
        "reads": part.reads,
        "depths": sorted(part.drafts),
        "max_logit_error": agreement.largest,
        "relative_logit_error": agreement.relative,
        "rows_checked": agreement.rows,
        "matrix_error": made.matrix_error,
        "kept": [round(share, 4) for share in made.kept],
        "acceptance": part.accepted,
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def _skip_dict(made: SkipReport) -> dict[str, Any]:
    return {
        "without": made.part.without,
        "share": round(made.share, 4),
        "bytes": made.bytes,
        "agreement": round(made.agreement, 4),
        "acceptance": made.part.accepted,
        "round_tokens": round(made.round_tokens, 4),
        "pass": round(made.price, 4),
        "row": round(made.row, 4),
        "depth": made.depth,
        "gain": round(made.gain, 4),
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def _exit_dict(made: ExitReport) -> dict[str, Any]:
    return {
        "layers": sorted(made.part.exits),
        "bytes": made.bytes,
        "right": {str(layer): round(share, 4) for layer, share in made.right.items()},
        "pass": {str(layer): cost for layer, cost in made.part.costs.items()},
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def _split_dict(made: SplitReport) -> dict[str, Any]:
    split = made.part.split
    assert split is not None
    return {
        "layer": split.layer,
        "vocab": split.vocab or made.part.vocab,
        "bytes": made.bytes,
        "copied": made.copied,
        "share": round(made.share, 4),
        "right": list(made.right),
        "recall": {str(layer): shares for layer, shares in split.recall.items()},
        "seconds": {stage: round(took, 3) for stage, took in made.seconds.items()},
    }


def lines(report: Report) -> list[str]:
    """The same as text."""
    from paceline.memory.budget import peak_memory
    from paceline.runtime.drafters.names import goes_beside
    from paceline.runtime.drafters.words import AUTO

    shown = [f"{report.manifest.name}: {report.bytes / 1e6:,.1f} MB in {report.folder}"]
    for name, made in report.parts.items():
        shown.extend(_part_lines(name, made))
    if report.manifest.target.taps:
        shown.append(f"  target: gives {', '.join(report.manifest.target.taps)}")
    for name, part in {"target": report.manifest.target, **report.manifest.drafters}.items():
        if part.training is not None:
            when = "" if part.predictor is None else ", and when a draft ends"
            size = f"{part.adapter_bytes / 1e6:,.1f} MB"
            shown.append(f"  {name}: learns with --adapt on, adapters of {size}{when}")
    for name, head in report.heads.items():
        shown.extend(_head_lines(name, head))
    for name, skip in report.skips.items():
        shown.extend(_skip_lines(name, skip))
    for name, exits in report.exits.items():
        shown.extend(_exit_lines(name, exits))
    if report.split is not None:
        shown.extend(_split_lines(report.split))
    peak = peak_memory()
    memory = "" if peak is None else f", peak memory {peak / 1e6:,.0f} MB"
    shown.append(f"took {report.seconds:.1f} s{memory}")
    beside = goes_beside(AUTO, report.manifest.drafters)
    if report.split is not None and not beside:
        shown.append(
            "nothing in it can draft beside the two graphs: give it a draft model (export --drafter NAME=DIR), or run "
            "it with that of another bundle (--mirror on --drafter-bundle BUNDLE)"
        )
    mirror = " --mirror on" if report.split is not None and beside else ""
    shown.append(f"next: paceline run -b {report.folder}{mirror} 'Once upon a time'")
    return shown


def _rounded(part: Part, recipe: Recipe | None) -> str:
    if recipe is not None:
        return f"{recipe.bits:.2f} bits a weight ({recipe.told()})"
    return (
        f"{part.quant}, one scale a column"
        if part.block is None
        else f"{part.quant} in blocks of {part.block}"
    )


def _part_lines(name: str, made: PartReport) -> list[str]:
    part, agreement = made.part, made.agreement
    kept = {"none": "weights as they came", "keep": "weights in the blocks of the GGUF file"}
    weights = kept.get(part.quant) or _rounded(part, made.recipe)
    shown = [
        f"  {name}: {part.architecture}, {part.parameters / 1e6:,.1f} M parameters, {part.layers} layers, "
        f"{weights}, {made.bytes / 1e6:,.1f} MB, {part.nodes_per_layer:g} nodes a layer",
        f"    its graph against {made.reference} with the same weights, {agreement.rows} rows: largest logit error "
        f"{agreement.largest:.2g} ({agreement.relative:.1g} of the largest logit)",
    ]
    if made.matrix_error:
        how = "calibrated rounding" if made.calibrated else "rounding"
        shown.append(f"    worst matrix: {made.matrix_error:.1%} relative error after {how}")
    if made.loss is not None:
        shown.append(f"    {made.loss.told()}")
    return shown


def _head_lines(name: str, made: HeadReport) -> list[str]:
    part, agreement = made.part, made.agreement
    weights = "weights as they came" if part.quant == "none" else f"{part.quant} in blocks of {part.block}"
    layers = ", ".join(map(str, part.exits))
    drafts = (
        f"drafts up to {max(part.drafts)}" if part.drafts else f"drafts with the model up to layer {layers}"
    )
    shown = [
        f"  {name}: {part.method} head, {part.parameters / 1e6:,.1f} M parameters, reads {', '.join(part.reads)}, "
        f"knows {part.vocab:,} tokens, {drafts}, {weights}, {made.bytes / 1e6:,.1f} MB",
        f"    its graphs against numpy with the same weights, {agreement.rows} rows: largest error "
        f"{agreement.largest:.2g} ({agreement.relative:.1g} of the largest logit)",
        f"    chooses as the trained head does: {_shares(made.kept)} of drafts, by depth",
    ]
    if part.accepted:
        shown.append(f"    accepted in training: {_shares(part.accepted)}, by depth")
    return shown


def _skip_lines(name: str, made: SkipReport) -> list[str]:
    blocks = len(made.part.without)
    shown = [
        f"  {name}: the model without {blocks} of its blocks, {made.share:.0%} of their weights; "
        f"{made.bytes / 1e6:,.1f} MB, no weights of its own",
        f"    chooses as the whole model: {made.agreement:.0%} of the tokens that the search saw",
        f"    accepted on others: {_shares(made.part.accepted)}, by depth; {made.round_tokens:.2f} tokens a round with "
        "chains of 4",
        f"    a draft pass takes {made.price:.2f} of a pass here, one more row to verify {made.row:.2f}",
    ]
    if made.depth:
        return [*shown, f"    predicted: {made.gain:.2f} times plain decoding, with chains of {made.depth}"]
    return [*shown, "    predicted: never faster than plain decoding here, so auto will not use it"]


def _exit_lines(name: str, made: ExitReport) -> list[str]:
    *fewer, last = map(str, made.part.exits)
    layers, by = (
        (f"one of the layers {', '.join(fewer)} and {last}", ", by layer") if fewer else (f"layer {last}", "")
    )
    part = made.part
    return [
        f"  {name}: the model left after {layers}; {made.bytes / 1e6:,.1f} MB, no weights of its own",
        f"    chooses as the whole model: {_shares([*made.right.values()])} of a sample text{by}",
        f"    a draft pass reads {_shares([*part.costs.values()])} of what a pass reads",
    ]


def _shares(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.0%}" for share in shares)


def _split_lines(made: SplitReport) -> list[str]:
    split = made.part.split
    assert split is not None
    ranks = [rank for rank in (1, 2, 4, 8) if rank <= len(made.right)]
    right = ", ".join(f"{made.right[rank - 1]:.0%} of {rank}" for rank in ranks)
    trained = split.recall.get(split.layer)
    of_others = (
        f", which is not the model's own as those of its training were ({trained[0]:.0%} of 1 there),"
        if trained
        else ""
    )
    known = (
        f"    names {split.vocab:,} of {made.part.vocab:,} tokens, by a copy of their rows of the LM head, "
        f"{made.copied / 1e6:,.1f} MB"
        if split.vocab is not None
        else "    names all of its tokens, by its whole LM head"
    )
    return [
        f"  target: in two graphs, split behind layer {split.layer}, {made.bytes / 1e6:,.1f} MB over its weights; the "
        f"first one reads {made.share:.0%} of the bytes of a pass",
        known,
        f"    on a sample text{of_others} the choice of the model is among its likeliest: {right}",
    ]
