"""Import OpenVINO without two modules that its import would load.

- `openvino_telemetry`, if it is installed, sends a message to Google Analytics without asking.
- `openvino.tools.ovc` converts models of other frameworks, which polyvec does not need. Importing
  it takes a tenth of the time of `polyvec embed`.

OpenVINO works without modules that are not installed, so this file hides both during the import.
"""

import sys

UNWANTED = ("openvino_telemetry", "openvino.tools.ovc")

_hidden = {name: sys.modules[name] for name in UNWANTED if name in sys.modules}
sys.modules.update(dict.fromkeys(UNWANTED))  # type: ignore[arg-type]  # None: not importable
try:
    import openvino as ov
    from openvino import opset13 as ops
finally:
    for _name in UNWANTED:
        del sys.modules[_name]
    sys.modules.update(_hidden)


def _import_late(name: str) -> object:
    """Load `openvino.convert_model` when other code in this process first uses it."""
    if name == "convert_model":
        from openvino.tools.ovc import convert_model

        return convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


# Python calls it for attributes that the module does not have (PEP 562).
ov.__dict__.setdefault("__getattr__", _import_late)

__all__ = ["ops", "ov"]
