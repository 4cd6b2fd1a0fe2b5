"""A GGUF model in other forms, by llama.cpp's own quantiser, for `gguf_forms.py`.

    PEERS/bin/python tests/bench/requantise.py MODEL.gguf FOLDER Q4_0 Q5_1 Q4_K_M Q6_K

First everything is brought to F16, in FOLDER too, and each form is rounded from that. It imports nothing but
llama-cpp-python.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path


def quantise(source: Path, form: str, target: Path) -> None:
    """Write `source` in another form. Raises SystemExit where llama.cpp refuses."""
    import llama_cpp as c

    code = getattr(c, f"LLAMA_FTYPE_MOSTLY_{form}", None)
    if code is None:
        sys.exit(f"llama.cpp has no form {form}")
    wanted = c.llama_model_quantize_default_params()
    wanted.ftype, wanted.allow_requantize = code, True
    if c.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(wanted)):
        sys.exit(f"llama.cpp cannot bring {source} to {form}")


def main() -> None:
    """Write every form."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("forms", nargs="+")
    given = parser.parse_args()
    try:
        import llama_cpp  # noqa: F401
    except ImportError as error:
        sys.exit(f"llama.cpp is not installed: {error}")
    plain = given.folder / "F16.gguf"
    quantise(given.model, "F16", plain)
    for form in given.forms:
        quantise(plain, form, given.folder / f"{form}.gguf")


if __name__ == "__main__":
    main()
