"""Transformer blocks as an OpenVINO graph over packed tokens.

Linear layers run on the tokens of all texts laid end to end, so they never compute padding, and
they are nearly all of the work. Only attention needs rectangles: queries, keys and values are
gathered into [B, L] under a mask, and the result is gathered back.

Axes in this file: T tokens, B texts, L the longest text, D width, H heads, K head width,
A adapters, R rank, C columns of low-rank values (see `count_columns`).
"""

from collections.abc import Callable

import numpy as np

from polyvec.config import ModelConfig
from polyvec.engines.openvino_import import ops, ov

Weight = Callable[[str], ov.Node]
"""Canonical name -> the node of that weight: float32, or bf16 if products run in bf16."""

LINEARS = ("qkv", "out", "up", "down")
NORMS = ("attention_norm", "ffn_norm")

WIDENED = ("qkv", "up")
"""Linears with more outputs than inputs. The adapters' low-rank values are appended to the inputs,
which costs less memory traffic than adding the adapters' product to the outputs."""

COLUMN_MULTIPLE = 32
"""Low-rank columns are padded to a multiple of this: bf16 products with 32 or 64 columns take as
little as half the time of products with 20."""


def count_columns(config: ModelConfig) -> int:
    """Low-rank values per token: the ranks of all adapters, and zeros up to `COLUMN_MULTIPLE`."""
    return -(-len(config.tasks) * config.adapter_rank // COLUMN_MULTIPLE) * COLUMN_MULTIPLE


def layer_names(*, adapters: bool) -> list[str]:
    """The names of one block's weights, without their `layers.N.` prefix.

    "wide" stands for `weight` and `lora_b` joined.
    """
    names = []
    for linear in LINEARS:
        parts = ["wide"] if adapters and linear in WIDENED else ["weight"]
        parts += ["bias", "lora_a"] if adapters else ["bias"]
        parts += ["lora_b"] if adapters and linear not in WIDENED else []
        names += [f"{linear}.{part}" for part in parts]
    return names + [f"{norm}.{part}" for norm in NORMS for part in ("weight", "bias")]


def build_layers(
    config: ModelConfig,
    layers: list[Weight],
    parameters: list[ov.Node],
    *,
    adapters: bool,
    widen: bool = True,
) -> ov.Model:
    """A model of consecutive blocks; each element of `layers` returns one block's weights.

    `widen` joins weights with their adapters, which is impossible for 8-bit weights. `parameters`
    are the inputs that `layers` made, if the weights are inputs. The other inputs are:

    - x [T, D]: hidden states; the output has the same shape
    - cos, sin [T, 1, 1, K]: rotary angles, as inputs so that the base may change between calls
    - rectangle [B, L]: the token at each place; beyond a text's end, any token of the same text
    - bias [B, 1, 1, L]: added to attention's scores: 0, or -inf beyond a text's end
    - back [T]: each token's place in the flattened rectangle
    - mask [T, C]: the adapter scale if the token's text uses the adapter, else 0 (with `adapters`)
    """
    inputs = {
        "x": make_input("x", [-1, config.width]),
        "cos": make_input("cos", [-1, 1, 1, config.head_width]),
        "sin": make_input("sin", [-1, 1, 1, config.head_width]),
        "rectangle": make_input("rectangle", [-1, -1], np.int32),
        "bias": make_input("bias", [-1, 1, 1, -1]),
        "back": make_input("back", [-1], np.int32),
    }
    if adapters:
        inputs["mask"] = make_input("mask", [-1, count_columns(config)])
    x = inputs["x"]
    for weight in layers:
        x = _block(config, x, inputs, weight, WIDENED if widen else ())
    # The stubs describe another class of this name.
    return ov.Model([x], [*inputs.values(), *parameters], "polyvec")  # pyright: ignore[reportGeneralTypeIssues]


def make_input(name: str, shape: list[int], dtype: type = np.float32) -> ov.Node:
    """A graph input that requests know by `name`; -1 is an axis of any length."""
    node = ops.parameter(shape, dtype, name=name)
    node.output(0).set_names({name})
    return node


def _block(
    config: ModelConfig,
    x: ov.Node,
    inputs: dict[str, ov.Node],
    weight: Weight,
    widened: tuple[str, ...],
) -> ov.Node:
    """One post-norm block: attention, then the feed-forward part."""
    mask = inputs.get("mask")

    def linear(x: ov.Node, name: str) -> ov.Node:
        """Computes in its matrix's type: converting before the bias would cost one more pass."""
        wide = mask is not None and name in widened
        matrix = weight(f"{name}.wide" if wide else f"{name}.weight")
        kind = matrix.get_element_type()

        def product(x: ov.Node, matrix: ov.Node) -> ov.Node:
            return ops.matmul(x, _cast(matrix, kind), False, True)

        x, bias = _cast(x, kind), _cast(weight(f"{name}.bias"), kind)
        if mask is None:
            return ops.add(product(x, matrix), bias)
        low_TC = ops.multiply(product(x, weight(f"{name}.lora_a")), _cast(mask, kind))
        if wide:
            return ops.add(product(ops.concat([x, low_TC], -1), matrix), bias)
        y = ops.add(product(x, matrix), bias)
        return ops.add(y, product(low_TC, weight(f"{name}.lora_b")))

    def norm(x: ov.Node, name: str) -> ov.Node:
        eps = config.layer_norm_eps
        centred = ops.mvn(x, _ints(-1), True, eps, "inside_sqrt")
        return ops.add(ops.multiply(centred, weight(f"{name}.weight")), weight(f"{name}.bias"))

    def rectangle(x_T1HK: ov.Node | ov.Output) -> ov.Node:
        x_THK = ops.squeeze(x_T1HK, _ints(1))
        x_BLHK = ops.gather(x_THK, inputs["rectangle"], _ints(0))
        return ops.transpose(x_BLHK, _ints(0, 2, 1, 3))

    shape = _ints(-1, 3, config.num_heads, config.head_width)
    qkv = _cast(linear(x, "qkv"), ov.Type.f32)
    q, k, v = ops.split(ops.reshape(qkv, shape, False), ops.constant(1), 3).outputs()
    mixed_BHLK = ops.scaled_dot_product_attention(
        rectangle(_rotate(q, inputs, config.head_width)),
        rectangle(_rotate(k, inputs, config.head_width)),
        rectangle(v),
        inputs["bias"],
    )
    mixed_BLHK = ops.transpose(mixed_BHLK, _ints(0, 2, 1, 3))
    mixed_TD = ops.gather(
        ops.reshape(mixed_BLHK, _ints(-1, config.width), False), inputs["back"], _ints(0)
    )
    x = norm(ops.add(x, _cast(linear(mixed_TD, "out"), ov.Type.f32)), "attention_norm")
    up = ops.gelu(linear(x, "up"), "erf")
    return norm(ops.add(x, _cast(linear(up, "down"), ov.Type.f32)), "ffn_norm")


def _rotate(x_T1HK: ov.Output, inputs: dict[str, ov.Node], head_width: int) -> ov.Node:
    """Turn the pair (x[i], x[i + K/2]) by the i-th angle (Su et al. 2021, equation 15).

    OpenVINO recognises this form, with its four axes, and fuses it into one operation.
    """
    half, step, axis = head_width // 2, _ints(1), _ints(3)
    left = ops.slice(x_T1HK, _ints(0), _ints(half), step, axis)
    right = ops.slice(x_T1HK, _ints(half), _ints(head_width), step, axis)
    crossed = ops.concat([ops.multiply(right, ops.constant(np.float32(-1))), left], -1)
    return ops.add(ops.multiply(x_T1HK, inputs["cos"]), ops.multiply(crossed, inputs["sin"]))


def _cast(x: ov.Node, kind: ov.Type) -> ov.Node:
    return x if x.get_element_type() == kind else ops.convert(x, kind)


def _ints(*values: int) -> ov.Node:
    return ops.constant(np.array(values, np.int64))
