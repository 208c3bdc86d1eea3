"""Settings of the agent from arguments and environment, and its usage errors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.settings import Settings, duration, parse

DIGEST = "ab" * 32


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("15s", 15),
        ("5m", 300),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1m500ms", 60.5),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 m", "-1", "-5s", "nan", "inf", "1e999", "5d", "1h-"])
def test_a_malformed_duration_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        duration(text)


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = duration(text)
    except ValueError:
        return
    assert 0 <= seconds < float("inf")


def test_the_defaults_are_the_model_s() -> None:
    settings = parse([], {})
    assert settings == Settings()
    assert (settings.bind, settings.port, settings.secured) == ("127.0.0.1", 9527, False)


def test_every_argument_is_parsed() -> None:
    settings = parse(
        ["--bind=::1", "--port=0", "--idle-timeout=1m", "--connect-timeout", "2s", "--grace=0"]
        + ["--v=4"],
        {},
    )
    assert settings == Settings("::1", 0, 60.0, 2.0, 0.0)


def test_the_key_and_its_digest_come_from_the_environment() -> None:
    assert parse([], {"KRELAY_KEY": "00ff"}).key == b"\x00\xff"
    assert parse([], {"KRELAY_KEY": "00ff"}).secured
    assert parse([], {"KRELAY_KEY_SHA256": DIGEST}).key_sha256 == DIGEST
    assert parse([], {"KRELAY_KEY_SHA256": DIGEST}).secured
    assert not parse([], {"KRELAY_KEY": "", "KRELAY_KEY_SHA256": ""}).secured


@pytest.mark.parametrize("address", ["10.244.0.7", "fd00::7"])
def test_the_door_s_address_comes_from_the_environment(address: str) -> None:
    settings = parse([], {"KRELAY_POD_IP": address})
    assert (settings.pod_ip, settings.door_port) == (address, 10250)
    assert parse([], {"KRELAY_POD_IP": address, "KRELAY_DOOR_PORT": "0"}).door_port == 0
    assert parse([], {"KRELAY_POD_IP": "", "KRELAY_DOOR_PORT": ""}) == parse([], {})


@pytest.mark.parametrize("environ", [{"KRELAY_KEY": "00"}, {"KRELAY_KEY_SHA256": DIGEST}])
@pytest.mark.parametrize("bind", ["0.0.0.0", "::", "10.0.0.1"])
def test_binding_beyond_loopback_needs_a_key(
    bind: str, environ: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse(["--bind", bind], environ).bind == bind
    with pytest.raises(SystemExit) as caught:
        parse(["--bind", bind], {})
    assert caught.value.code == 2
    assert f"--bind {bind} is open to others and requires a key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "environ", "said"),
    [
        (["--port=x"], {}, "--port: invalid port value: 'x'"),
        (["--port=65536"], {}, "--port: invalid port value: '65536'"),
        (["--port=-1"], {}, "--port: invalid port value: '-1'"),
        (["--bind=localhost"], {}, "--bind: invalid address value: 'localhost'"),
        (["--idle-timeout=soon"], {}, "--idle-timeout: invalid duration value: 'soon'"),
        (["--idle=1s"], {}, "unrecognized arguments: --idle=1s"),
        (["more"], {}, "unrecognized arguments: more"),
        ([], {"KRELAY_KEY": "xyz"}, "KRELAY_KEY is not hexadecimal"),
        ([], {"KRELAY_POD_IP": "node.example.test"}, "KRELAY_POD_IP is not an address"),
        ([], {"KRELAY_DOOR_PORT": "-1"}, "KRELAY_DOOR_PORT is not a port"),
    ],
)
def test_a_usage_error_ends_with_2(
    args: list[str], environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(args, environ)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "xyz" not in error
