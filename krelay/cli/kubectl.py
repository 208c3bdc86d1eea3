"""`kubectl relay`: the command lines of kubectl port-forward and of the Go krelay."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krelay import __version__
from krelay.cli.main import run_command
from krelay.cli.output import hush, say, set_up_logging
from krelay.errors import UsageError
from krelay.model import Kind

if TYPE_CHECKING:
    from krelay.cluster.auth.kubeconfig import Overrides
    from krelay.config.overlay import Overlay
    from krelay.model import Patch
    from krelay.supervisor.forward import Forward

logger = logging.getLogger("krelay.relay")

_EXAMPLES = """\b
Examples:
  # Listen on port 8080, forward to the port named "http" of the service
  kubectl relay service/my-service 8080:http
\b
  # Listen on a random port, forward UDP to port 53 of a pod of the deployment
  kubectl relay -n kube-system deploy/kube-dns :53@udp
\b
  # Listen on port 5353 of all addresses, forward to port 53 of the pod
  kubectl relay --address 0.0.0.0 pod/my-pod 5353:53
\b
  # Forward to a host or an address that the cluster reaches
  kubectl relay host/redis.cn-north-1.cache.example.com 6379
  kubectl relay ip/1.2.3.4 5000@tcp 6000@udp
\b
  # A SOCKS5 and HTTP proxy into the cluster, on 127.0.0.1:1080 (or -l ADDRESS:PORT)
  kubectl relay proxy
\b
  # Change the agent's pod
  kubectl relay --patch '{"spec":{"nodeSelector":{"k":"v"}}}' ip/1.2.3.4 5000
\b
  # Many targets, one a line, or a krelay.yaml
  kubectl relay -f targets.txt
"""


def _addresses(values: tuple[str, ...]) -> tuple[str, ...]:
    """Those of `--address a,b --address c`, each once.

    Raises:
        UsageError: one cannot be listened on.
    """
    from krelay.config.grammar import parse_listen
    from krelay.config.parse_error import Flaw

    found = [part for value in values for part in value.split(",")]
    try:
        return tuple(dict.fromkeys(parse_listen(part.strip()) for part in found))
    except Flaw as flaw:
        raise UsageError(flaw.message, hint=flaw.hint) from flaw


def _patches(patch: str | None, file: str | None, kind: str | None) -> tuple[Patch, ...]:
    """The patches of the command line, in the order in which they apply.

    Raises:
        UsageError: the file cannot be read.
        ConfigError: one is no patch.
    """
    from krelay.config import files
    from krelay.config.patches import parse

    found = []
    if file is not None:
        data = files.given(file)
        data = files.read(file) if data is None else data
        found.append(parse(data, file, os.environ, kind=kind))
    if patch is not None:
        found.append(parse(patch.encode(errors="surrogateescape"), "--patch", {}, kind=kind))
    return tuple(found)


def _announce(forward: Forward) -> None:
    """In kubectl's words for whoever waits for them, and in the Go krelay's in the log."""
    if forward.spec.target.kind is Kind.PROXY:
        for local in forward.addresses:
            say(f"SOCKS5 server is running address={local}")
        return
    endpoint = forward.route.endpoint
    remote = endpoint.port if endpoint else forward.spec.port.remote
    try:
        for local in forward.addresses:
            say(f"Forwarding from {local} -> {remote}")
            logger.info(
                "Forwarding protocol=%s localAddr=%s remotePort=%s",
                forward.protocol,
                local,
                remote,
            )
    except BrokenPipeError:
        hush()


def _connection(command: Any) -> Any:
    """kubectl's flags for the way to the API server."""
    options = [
        click.option("--kubeconfig", metavar="FILE", help="Path to the kubeconfig file."),
        click.option("--context", help="The kubeconfig context to use."),
        click.option("--cluster", help="The kubeconfig cluster to use."),
        click.option("--user", help="The kubeconfig user to use."),
        click.option("-n", "--namespace", help="The targets' namespace."),
        click.option("-s", "--server", help="The address and port of the API server."),
        click.option("--token", help="Bearer token for the API server."),
        click.option("--as", "as_", metavar="USER", help="User to impersonate."),
        click.option("--as-group", multiple=True, help="Group to impersonate; several allowed."),
        click.option("--certificate-authority", metavar="FILE", help="CA file of the API server."),
        click.option("--tls-server-name", help="Server name to check its certificate against."),
        click.option(
            "--insecure-skip-tls-verify",
            type=bool,
            is_flag=False,
            flag_value=True,
            default=None,
            help="Do not check the API server's certificate.",
        ),
        click.option("--request-timeout", metavar="TIME", help="For single requests; 0: none."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _overrides(given: dict[str, Any]) -> Overrides:
    from krelay.cluster.auth.kubeconfig import Overrides
    from krelay.config.duration import parse_duration
    from krelay.config.parse_error import Flaw

    timeout = given["request_timeout"]
    try:
        seconds = parse_duration(timeout) if timeout is not None else None
    except Flaw as flaw:
        raise UsageError(f"--request-timeout: {flaw.message}", hint=flaw.hint) from flaw
    names = (
        *("cluster", "user", "server", "token", "as_", "as_group"),
        *("certificate_authority", "tls_server_name", "insecure_skip_tls_verify"),
    )
    values = {name: given[name] for name in names}
    if values["certificate_authority"]:
        values["certificate_authority"] = str(Path(values["certificate_authority"]).absolute())
    return Overrides(**values, request_timeout=seconds or None)


def _overlay(given: dict[str, Any]) -> Overlay:
    from krelay.config.overlay import Overlay

    return Overlay(
        context=given["context"],
        namespace=given["namespace"],
        listens=_addresses(given["address"]),
        image=given["server_image"],
        patches=_patches(given["patch"], given["patch_file"], given["patch_type"]),
        insecure=given["insecure"],
    )


def _complete(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    from krelay.cli.completion import words

    return words(context, param, word)


@click.command(
    "kubectl relay",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EXAMPLES,
)
@click.argument(
    "words",
    metavar="TYPE/NAME [LOCAL_PORT:]REMOTE_PORT[@PROTOCOL]...",
    nargs=-1,
    shell_complete=_complete,
)
@click.option("-f", "--file", metavar="FILE", help="Targets, one a line, or a krelay.yaml.")
@click.option(
    "-l",
    "--address",
    "--listen",
    "address",
    multiple=True,
    help="Address to listen on; several allowed. [127.0.0.1]",
)
@click.option("--insecure", is_flag=True, help="Let other machines use a proxy without a password.")
@click.option("-p", "--patch", metavar="PATCH", help="A patch to the agent's pod, JSON or YAML.")
@click.option("--patch-file", metavar="FILE", help="A file with such a patch.")
@click.option(
    "--patch-type",
    type=click.Choice(["strategic", "merge", "json"]),
    help="How it applies. [json for a list, else strategic]",
)
@click.option("--server.image", "server_image", metavar="IMAGE", help="The agent's image.")
@click.option("--pod-running-timeout", metavar="TIME", hidden=True, help="kubectl's; not needed.")
@_connection
@click.option("-v", "--v", "verbosity", type=int, default=3, help="How much to say. [3]")
@click.option("-V", "--version", is_flag=True, help="Print the version and exit.")
def relay(
    words: tuple[str, ...], file: str | None, verbosity: int, version: bool, **given: Any
) -> int:
    """Forward local ports to a service, a pod, a workload, or a host or address that the cluster
    reaches: TCP and UDP, with edits, rolling updates and lost connections survived."""
    if version:
        say(json.dumps({"Version": f"v{__version__}"}))
        return 0
    set_up_logging(verbosity - 3)
    from krelay.cli import up
    from krelay.config.files import given as given_text
    from krelay.config.overlay import Proxy, Words
    from krelay.config.selection import Selection
    from krelay.supervisor.contexts import Contexts

    proxy = words == ("proxy",) and file is None
    listens, given["address"] = given["address"], () if proxy else given["address"]
    overlay = _overlay(given)
    source: up.Source
    if file is not None and words:
        raise UsageError("both a file and a target", hint="write the target into the file")
    if file is not None:
        source = Selection(file, environ=os.environ, text=given_text(file), overlay=overlay)
    elif proxy:
        source = Proxy(overlay=overlay)
        if listens:
            source = Proxy(listens[-1], overlay=overlay)
    elif words:
        source = Words(words, overlay)
    else:
        hint = "for example `kubectl relay svc/nginx 8080:80`; `-h` has more"
        raise UsageError("TYPE/NAME and ports are required", hint=hint)
    contexts = Contexts(given["kubeconfig"], _overrides(given))
    return up.run(source, announce=_announce, contexts=contexts, must_exist=True)


def main() -> int:
    """`kubectl-relay`, so that kubectl finds it; returns the exit code."""
    return run_command(relay, "kubectl relay")
