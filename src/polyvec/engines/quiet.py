"""OpenVINO, without the message to Google Analytics that importing it sends.

`import openvino` starts `openvino_telemetry`, if installed, which opted everybody in. OpenVINO has
a stub for those who lack that package, so while it is imported here the package cannot be found.
"""

import sys

TELEMETRY = "openvino_telemetry"

_found = sys.modules.get(TELEMETRY)
sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # how Python writes "not importable"
try:
    import openvino as ov
    from openvino import opset13 as ops
finally:
    del sys.modules[TELEMETRY]
    if _found is not None:
        sys.modules[TELEMETRY] = _found

__all__ = ["ops", "ov"]
