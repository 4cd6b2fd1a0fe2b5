"""What was chosen for each matrix while a graph was stored: the weights that a bundle holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from paceline.export.mixing import Choose
from paceline.export.passes import Floats
from paceline.export.quantize import Quantised


@dataclass(slots=True)
class StoredWeights:
    """Codes by parameter name, kept until they are taken: a byte for each weight."""

    _codes: dict[str, Quantised] = field(default_factory=dict)

    def seen(self, choose: Choose) -> Choose:
        """The same choice, of which this takes note."""

        def chosen(name: str, values: Floats) -> Quantised | None:
            found = choose(name, values)
            if found is not None:
                self._codes[name] = found
            return found

        return chosen

    def take(self) -> dict[str, Quantised]:
        """The codes by parameter name; afterwards this holds none."""
        codes, self._codes = self._codes, {}
        return codes
