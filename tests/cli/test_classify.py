from inspect import signature

from polyvec.cli.classify import classify
from polyvec.tasks import CLASSIFICATION


def test_the_default_task_is_that_of_the_room():
    assert signature(classify).parameters["task"].default == CLASSIFICATION
