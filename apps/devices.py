"""`paceline devices`: what the installed ONNX Runtime can run on."""

from __future__ import annotations

from paceline.options import JsonFlag
from paceline.printable import say_json


def devices(*, as_json: JsonFlag = False) -> None:
    """List the devices that --device takes, and the kernels in use."""
    from paceline.runtime.model.device import kernels, list_devices, runtime_version
    from paceline.runtime.model.processors import default_threads, physical_cores
    from paceline.runtime.model.weights import huge_pages

    found = list_devices()
    own = kernels()
    if as_json:
        shown = [{"name": d.name, "provider": d.provider, "kind": d.kind, "detail": d.detail} for d in found]
        say_json(
            {
                "onnxruntime": runtime_version(),
                "devices": shown,
                "kernels": {"in_use": own.in_use, "level": own.level, "levels": list(own.levels)},
                "huge_pages": huge_pages(),
                "threads": default_threads(),
            }
        )
        return
    print(runtime_version())
    for device in found:
        print(f"  {device.name:<10} {device.kind:<12} {device.provider:<26} {device.detail}")
    print(f"kernels    {own.in_use}")
    if own.level is not None:
        print("           PACELINE_KERNELS takes none (ONNX function bodies) and, the slowest first,")
        print(f"           {', '.join(own.levels)}; the last one is taken unless it says otherwise")
    in_pages = own.level is not None and huge_pages()
    print(f"weights    {'packed ones in huge pages' if in_pages else 'mapped from their file'}")
    threads = default_threads()
    why = "one a core" if threads == physical_cores() else "what the processor quota leaves"
    print(f"threads    {threads} ({why}; change it with --threads)")
