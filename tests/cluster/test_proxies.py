from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.cluster.proxies import from_environment, from_kubeconfig
from krelay.errors import CredentialsError


@pytest.mark.parametrize(
    ("server", "environ", "expected"),
    [
        ("https://h", {}, None),
        ("https://h", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://h", {"https_proxy": "p:1"}, "http://p:1"),
        ("https://h", {"HTTP_PROXY": "http://p:1", "ALL_PROXY": "http://p:1"}, None),
        ("http://h", {"HTTP_PROXY": "http://p:1"}, "http://p:1"),
        ("https://h", {"HTTPS_PROXY": "socks5h://u:p@p:1"}, "socks5://u:p@p:1"),
        ("https://h", {"HTTPS_PROXY": "SOCKS5H://u:P@p:1"}, "socks5://u:P@p:1"),
        ("https://h", {"HTTPS_PROXY": "Socks5://p:1"}, "socks5://p:1"),
        ("https://h", {"HTTPS_PROXY": "HTTP://p:1"}, "http://p:1"),
        ("https://h", {"HTTPS_PROXY": "https://p"}, "https://p"),
        ("https://localhost:6443", {"HTTPS_PROXY": "p"}, None),
        ("https://127.0.0.9:6443", {"HTTPS_PROXY": "p"}, None),
        ("https://[::1]:6443", {"HTTPS_PROXY": "p"}, None),
    ],
)
def test_the_environment_s_variable_is_chosen_by_the_scheme(
    server: str, environ: dict[str, str], expected: str | None
) -> None:
    assert from_environment(server, environ) == expected


@pytest.mark.parametrize(
    ("no_proxy", "server", "direct"),
    [
        ("*", "https://h.test", True),
        ("h.test", "https://h.test", True),
        ("H.Test ", "https://h.TEST", True),
        ("h.test", "https://a.h.test", True),
        ("h.test", "https://ah.test", False),
        (".h.test", "https://a.h.test", True),
        (".h.test", "https://h.test", False),
        ("*.h.test", "https://a.h.test", True),
        ("h.test:443", "https://h.test", True),
        ("h.test:6443", "https://h.test", False),
        ("x, ,h.test", "https://h.test", True),
        ("10.0.0.1", "https://10.0.0.1:6443", True),
        ("10.0.0.1:443", "https://10.0.0.1:6443", False),
        ("10.0.0.0/8", "https://10.9.9.9", True),
        ("10.0.0.0/8", "https://11.9.9.9", False),
        ("10.0.0.0/8", "https://h.test", False),
        ("10.0.0.0/99", "https://10.0.0.1", False),
        ("0.0.1", "https://10.0.0.1", False),
        ("fd00::/8", "https://[fd00::1]:6443", True),
        ("fd00::1", "https://[fd00::1]:6443", True),
        ("[fd00::1]:6443", "https://[fd00::1]:6443", True),
        ("[fd00::1]:443", "https://[fd00::1]:6443", False),
        ("fd00::2", "https://[fd00::1]", False),
    ],
)
def test_no_proxy_exempts_a_host_as_in_go(no_proxy: str, server: str, direct: bool) -> None:
    found = from_environment(server, {"HTTPS_PROXY": "http://p:1", "no_proxy": no_proxy})
    assert found == (None if direct else "http://p:1")


@pytest.mark.parametrize("url", ["ftp://p", "http://", "http://p:99999", "http://[::1"])
def test_a_variable_that_is_not_a_proxy_url_is_an_error(url: str) -> None:
    with pytest.raises(CredentialsError, match="^HTTPS_PROXY: not a proxy URL") as caught:
        from_environment("https://h", {"HTTPS_PROXY": url})
    assert "secret" not in str(caught.value)
    with pytest.raises(CredentialsError, match="^kubeconfig: proxy-url: not a proxy URL"):
        from_kubeconfig(url)


@pytest.mark.parametrize("host", ["\u2100", "h:port", "h:99999", "["])
def test_a_password_is_not_repeated(host: str) -> None:
    for check in (lambda url: from_environment("https://h", {"HTTPS_PROXY": url}), from_kubeconfig):
        with pytest.raises(CredentialsError) as caught:
            check(f"http://me:hunter2@{host}")
        assert "hunter2" not in "".join(caught.value.report())
        assert caught.value.__cause__ is None


def test_the_proxy_url_of_kubeconfig_is_checked() -> None:
    assert from_kubeconfig(None) is None
    assert from_kubeconfig("") is None
    assert from_kubeconfig("http://p:1") == "http://p:1"


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_a_proxy_or_refused(proxy: str, no_proxy: str) -> None:
    try:
        found = from_environment("https://h.test", {"HTTPS_PROXY": proxy, "NO_PROXY": no_proxy})
    except CredentialsError:
        return
    assert found is None or found.startswith(("http://", "https://", "socks5://"))
