"""OpenVINO, without what importing it brings that nobody asked for.

- `openvino_telemetry`, if installed, opts everybody in and sends a message to Google Analytics.
- `openvino.tools.ovc` converts other frameworks' models, of which we have none. Importing it takes
  a tenth of the time that `polyvec embed` takes.

OpenVINO goes without what isn't installed, so while it is imported here these can't be found.
"""

import sys

UNWANTED = ("openvino_telemetry", "openvino.tools.ovc")

_found = {name: sys.modules[name] for name in UNWANTED if name in sys.modules}
sys.modules.update(dict.fromkeys(UNWANTED))  # type: ignore[arg-type]  # None: not importable
try:
    import openvino as ov
    from openvino import opset13 as ops
finally:
    for _name in UNWANTED:
        del sys.modules[_name]
    sys.modules.update(_found)


def _import_late(name: str) -> object:
    """`openvino.convert_model`, for whoever else in this process wants it."""
    if name == "convert_model":
        from openvino.tools.ovc import convert_model

        return convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


# Python asks it for what the module doesn't have (PEP 562).
ov.__dict__.setdefault("__getattr__", _import_late)

__all__ = ["ops", "ov"]
