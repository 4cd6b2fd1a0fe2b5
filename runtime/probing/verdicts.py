"""Which devices really run here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field

from paceline.runtime.bundle.bundle import Bundle
from paceline.runtime.model.device import Device, devices_of
from paceline.runtime.model.ort import DeviceError
from paceline.runtime.model.providers import CPU, PROVIDERS, Provider
from paceline.runtime.options import Options
from paceline.runtime.probing.costs import costs_on, timed_parts
from paceline.runtime.probing.trying import Cost, Probed, probed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of trying a device. problem: why it cannot be used, "" where it can. costs: by part of the bundle."""

    name: str
    provider: str
    kind: str
    detail: str = ""
    problem: str = ""
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def works(self) -> bool:
        """Whether graphs can run there."""
        return not self.problem


@dataclass(frozen=True, slots=True)
class Wanted:
    """library: NAME=PATH of the user's own. again: nothing is known from before.

    options, bundle: what is timed on each device, as it was opened by them.
    """

    library: str | None = None
    again: bool = False
    options: Options | None = None
    bundle: Bundle | None = None


def verdicts(wanted: Wanted, own: Provider | None = None) -> Iterator[Verdict]:
    """Every device of every provider, the CPU first, and a line for each provider without one.

    own: the provider of `wanted.library`. A library of the user's is tried in a process of its own before
    it is loaded into this one.
    """
    for provider in (*PROVIDERS.values(), *([] if own is None else [own])):
        if provider is own:
            first = probed(provider.word, wanted.library, wanted.again)
            if first.problem:
                yield Verdict(provider.word, provider.name, provider.kinds, problem=first.problem)
                continue
        try:
            devices = devices_of(provider)
        except DeviceError as error:
            yield Verdict(provider.word, provider.name, provider.kinds, problem=str(error))
            continue
        for device in devices:
            yield _verdict(device, wanted)


def _verdict(device: Device, wanted: Wanted) -> Verdict:
    on_cpu, options, bundle = device.runs is CPU, wanted.options, wanted.bundle
    found = Probed() if on_cpu else probed(device.name, wanted.library, wanted.again)
    costs: Mapping[str, Cost] = {}
    if options is not None and bundle is not None and not found.problem:
        costs = costs_on(device, options, bundle, timed_parts(bundle), again=True)
    return Verdict(device.name, device.provider, device.hardware.kind, device.detail, found.problem, costs)


def as_dict(verdict: Verdict) -> dict[str, object]:
    """A verdict as JSON has it."""
    return {**asdict(verdict), "works": verdict.works}
