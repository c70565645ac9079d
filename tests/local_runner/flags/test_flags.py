"""One declaration of a flag: what a parser, the environment and `mii-azure` make of it, bad values first."""

import argparse
import re

import pytest

from local_runner.__main__ import main
from local_runner.flags import serving
from local_runner.flags.flag import Flag, add

ALL = (*serving.PEOPLE, *serving.PROGRAMS, *serving.LOCAL, *serving.RAY)


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser, ALL)
    return parser.parse_args(arguments)


def test_each_is_declared_once() -> None:
    assert len({flag.name for flag in ALL}) == len(ALL)
    for flag in ALL:
        assert re.fullmatch(r"[a-z-]+", flag.name)
        assert flag.text.endswith(".")
        assert flag.default is None or isinstance(flag.default, flag.kind)


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("http-port", "many", "invalid int value: 'many'"),
        ("http-port", "-1", "-1 is no port"),
        ("grpc-port", "65536", "ports go from 0 to 65535"),
        ("drain-seconds", "nan", "not negative"),
        ("start-seconds", "-1", "not negative"),
        ("replica-gpus", "-1", "not negative"),
        ("log-format", "xml", "invalid choice: 'xml'"),
        ("engine", "other", "invalid choice: 'other'"),
        ("host", " ", "it is blank"),
        ("api-key-file", "", "it is blank"),
    ],
)
def test_a_bad_value_is_refused_wherever_it_is_said(
    flag: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parsed(f"--{flag}={value}")
    assert re.search(f"argument --{flag}: .*{says}", capsys.readouterr().err)
    declared = next(each for each in ALL if each.name == flag)
    monkeypatch.setenv(declared.twin, value)
    with pytest.raises(SystemExit):
        parsed()
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cors-origins", "a.example"], "argument --cors-origins: 'a.example' is no origin: those are like "),
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag. "),
        (["--engine", "ray", "--adapter-root", "a"], "--adapter-root is for one machine: replicas in a Ray cluster "),
        (["--replicas", "2", "--front-ends", "2"], "--front-ends is for one model"),
    ],
    ids=lambda value: str(value[0]),
)
def test_the_runner_tells_what_is_wrong_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bundle", *arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error [wrong_arguments]: {says}")
    assert line.endswith(". --help lists what there is.")


@pytest.mark.parametrize(("word", "verbose"), [("1", True), ("true", True), ("No", False), (" ", False)])
def test_a_flag_without_a_value_has_a_twin_too(word: str, verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MII_AZURE_VERBOSE", word)
    assert parsed().verbose is verbose
    assert parsed("--verbose").verbose is True


def test_a_word_that_is_no_answer_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MII_AZURE_VERBOSE", "loud")
    with pytest.raises(SystemExit):
        parsed()
    assert "MII_AZURE_VERBOSE: invalid bool value: 'loud'" in capsys.readouterr().err


def test_a_command_line_goes_before_the_environment_and_blank_is_absent() -> None:
    flag = Flag("tokens", "Tokens.", int, 7)
    assert flag.read({}) == 7
    assert flag.read({}, default=9) == 9
    assert flag.read({"MII_AZURE_TOKENS": " "}) == 7
    assert flag.read({"MII_AZURE_TOKENS": "8"}) == 8
    with pytest.raises(ValueError, match=r"^MII_AZURE_TOKENS: invalid int value: 'x'$"):
        flag.read({"MII_AZURE_TOKENS": "x"})


def test_a_variable_that_is_wrong_does_not_stop_a_command_line_that_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MII_AZURE_HTTP_PORT", "many")
    assert parsed("--http-port", "8").http_port == 8
