"""`paceline devices`: what the installed ONNX Runtime can run on."""

from __future__ import annotations

import json

from paceline.options import JsonFlag


def devices(*, as_json: JsonFlag = False) -> None:
    """List the devices that --device takes, and the kernels in use."""
    from paceline.runtime.device import list_devices, physical_cores, runtime_version

    found = list_devices()
    if as_json:
        shown = [{"name": d.name, "provider": d.provider, "kind": d.kind, "detail": d.detail} for d in found]
        print(
            json.dumps(
                {
                    "onnxruntime": runtime_version(),
                    "devices": shown,
                    "kernels": kernels(),
                    "threads": physical_cores(),
                }
            )
        )
        return
    print(runtime_version())
    for device in found:
        print(f"  {device.name:<10} {device.kind:<12} {device.provider:<26} {device.detail}")
    print(f"kernels    {kernels()}")
    print(f"threads    {physical_cores()} (one a core; change it with --threads)")


def kernels() -> str:
    """Who computes `paceline::TreeAttention`: no native library exists yet."""
    return "ONNX function bodies"
