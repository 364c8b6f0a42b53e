"""The names and shapes of all tensors."""

import math

from polyvec.checkpoint import weight_shapes
from polyvec.config import ModelConfig


def test_the_released_model_has_its_published_number_of_parameters():
    shapes = weight_shapes(ModelConfig())
    assert sum(math.prod(shape) for shape in shapes.values()) == 572_310_396
    base = [shape for name, shape in shapes.items() if "lora" not in name]
    assert sum(math.prod(shape) for shape in base) == 559_364_096
