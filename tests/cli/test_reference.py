import re
import shlex
from pathlib import Path

import pytest

import polyvec
from polyvec.cli import VERBS, app
from polyvec.cli.reference import ENVIRONMENT, parameters, render_reference, split_help, verbs
from polyvec.terminal import ExitStatus

PAGE = Path(__file__).parents[2] / "docs/cli.md"
SOURCE = Path(polyvec.__file__).parent

HELP = [pytest.param(words, verb, id=words) for words, verb in verbs() if words.split()[1] in VERBS]


def test_the_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render_reference(), "run `make docs`"


@pytest.mark.parametrize(("words", "verb"), HELP)
def test_a_verb_has_a_summary_a_paragraph_an_example_and_help_for_every_parameter(words, verb):
    summary, paragraphs, examples = split_help(verb)
    assert re.fullmatch(r"[A-Z].*\.", summary)
    assert paragraphs
    assert all(re.fullmatch(r"[`A-Z].*\.", paragraph) for paragraph in paragraphs)
    assert examples
    assert all(words in example for example in examples)
    for form, meaning in parameters(verb):
        assert re.fullmatch(r"\S.*\.", meaning), form


@pytest.mark.parametrize(("words", "verb"), HELP)
def test_every_example_is_a_valid_command(words, verb):
    for example in split_help(verb)[2]:
        command = shlex.split(example.partition("polyvec ")[2])
        app.parse_args(command, print_error=False, exit_on_error=False)


@pytest.mark.parametrize("name", ["--adapter", "--input", "--lang", "--model", "DIR"])
def test_an_option_of_many_verbs_has_one_help_sentence(name):
    meanings = {
        meaning
        for words, verb in verbs()
        # Its models have names of their own, and --model is one of a server.
        if words != "polyvec eval run"
        for form, meaning in parameters(verb)
        if re.split("[ ,.]", form)[0] == name
    }
    assert len(meanings) == 1


def test_every_exit_status_has_a_row():
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(row) for row in rows] == [0, 1, 2, 130] == list(ExitStatus)


def test_the_environment_variables_are_those_that_the_source_names():
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in SOURCE.rglob("*.py")
        if path.name != "reference.py"
    )
    read = re.findall(r'environ(?:\.get\(|\.setdefault\(|\[)"([A-Z_]+)"', text)
    assert {*read, *re.findall(r"\bPOLYVEC_[A-Z_]+", text)} == ENVIRONMENT.keys()
