from inspect import signature

from polyvec.classification import TASK
from polyvec.cli.classify import classify


def test_the_default_task_is_that_of_the_room():
    assert signature(classify).parameters["task"].default == TASK
