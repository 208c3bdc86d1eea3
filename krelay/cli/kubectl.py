"""`kubectl relay`: the command lines of kubectl port-forward and of the Go krelay."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from krelay import __version__
from krelay.cli.command_line import preload, run_command
from krelay.cli.flags.connection import connection, namespaces, older, understand
from krelay.cli.flags.pflag import PflagCommand
from krelay.cli.flags.values import FILE, overrides, running_timeout, seconds
from krelay.cli.output import echo, set_up_logging, silence_stdout
from krelay.errors import UsageError
from krelay.net.bind import LOCALHOST, LOOPBACKS
from krelay.state.events import ForwardBound

if TYPE_CHECKING:
    from krelay.config.sources import Overlay
    from krelay.model import Patch

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
  # Forward to a host or an address that the cluster can reach
  kubectl relay host/redis.cn-north-1.cache.example.com 6379
  kubectl relay ip/1.2.3.4 5000@tcp 6000@udp
\b
  # Run a SOCKS5 and HTTP proxy into the cluster
  kubectl relay proxy -l 127.0.0.1:1080
\b
  # Patch the agent's pod
  kubectl relay --patch '{"spec":{"nodeSelector":{"k":"v"}}}' ip/1.2.3.4 5000
\b
  # Forward many targets: one per line, or a krelay.yaml
  kubectl relay -f targets.txt
"""


def _addresses(values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses of `--address a,b --address c`, each once."""
    from krelay.config.grammar import ParseError, parse_listen

    found = [part for value in values if value for part in value.split(",")]
    if values and not found:
        raise UsageError("you must specify at least 1 address", hint="for example `127.0.0.1`")
    try:
        addresses = dict.fromkeys(parse_listen(part.strip()) for part in found)
    except ParseError as exc:
        raise UsageError(exc.message, hint=exc.hint) from exc
    if LOCALHOST in addresses:
        for address in LOOPBACKS:
            addresses.pop(address, None)
    return tuple(addresses)


def _patches(patch: str | None, file: str | None, kind: str | None) -> tuple[Patch, ...]:
    """Return the patches of the command line, in the order in which they apply."""
    from krelay.config import files
    from krelay.config.build import parse_patch

    found = []
    if file is not None:
        data = files.read_once(file)
        data = files.read(file) if data is None else data
        found.append(parse_patch(data, file, os.environ, kind=kind))
    if patch is not None:
        found.append(parse_patch(patch.encode(errors="surrogateescape"), "--patch", {}, kind=kind))
    return tuple(found)


def _idle_timeout(text: str | None) -> float | None:
    if text is not None and (found := seconds(text, "--idle-timeout")) <= 0:
        raise UsageError(f"--idle-timeout: `{text}` is out of range", hint="more than 0")
    return None if text is None else found


def _announce(event: ForwardBound) -> None:
    """Print a line for each address of a forward, in which users of kubectl and the Go krelay find
    theirs.

    It begins as kubectl's line and goes on with the fields of the Go krelay's log. 127.0.0.1 and
    ::1 share one, in which `also` has the second.
    """
    forward = event.forward
    remote = (forward.endpoint or forward.to).rpartition(":")[2]
    # kubectl names the pod's port, the Go krelay the one that it dials.
    pod_port = event.pod_port or remote
    port = forward.listen[0].rpartition(":")[2]
    first, second = f"127.0.0.1:{port}", f"[::1]:{port}"
    shared = {first, second}.issubset(forward.listen)
    for local in forward.listen:
        if shared and local == second:
            continue
        also = f" also={second}" if shared and local == first else ""
        if event.proxy:
            line = f"SOCKS5 server is running address={local}{also}"
        else:
            fields = f"protocol={forward.protocol} localAddr={local} remotePort={remote}"
            line = f"Forwarding from {local} -> {pod_port}{also} {fields}"
        try:
            echo(line)
        except BrokenPipeError:
            silence_stdout()


def _verbosity(number: int) -> int:
    """Return the verbosity of the log for kubectl's `-v`: without it, warnings and errors only."""
    return max(number - 3, 0) if number > 0 else -1


def _overlay(given: dict[str, Any]) -> Overlay:
    from krelay.config.sources import Overlay
    from krelay.model import Via

    return Overlay(
        context=given["context"],
        namespace=given["namespace"],
        listens=_addresses(given["address"]),
        image=given["server_image"],
        agent_namespace=given["agent_namespace"],
        idle_timeout=_idle_timeout(given["idle_timeout"]),
        patches=_patches(given["patch"], given["patch_file"], given["patch_type"]),
        insecure=given["insecure"],
        via=Via(given["via"]) if given["via"] else None,
        flags=True,
    )


def _complete(context: click.Context, param: click.Parameter, word: str) -> list[Any]:
    from krelay.cli.flags.completion import relay_words

    return relay_words(context, param, word)


@click.command(
    "kubectl relay",
    cls=PflagCommand,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=_EXAMPLES,
)
@click.argument(
    "words",
    metavar="TYPE/NAME [LOCAL_PORT:]REMOTE_PORT[@PROTOCOL]...",
    nargs=-1,
    shell_complete=_complete,
)
@click.option(
    "-f",
    "--file",
    metavar="FILE",
    type=FILE,
    help="File with a target per line, or a krelay.yaml.",
)
@click.option(
    "-l",
    "--address",
    "--listen",
    "address",
    multiple=True,
    help="Address to listen on; may be repeated.  [default: localhost]",
)
@click.option(
    "--insecure", is_flag=True, help="Let other machines use the proxy without a password."
)
@click.option(
    "--via",
    type=click.Choice(["auto", "agent", "direct"]),
    help="Way into the cluster: through the agent, or directly into the pods, as kubectl takes it."
    "  [default: direct for a pod, else auto]",
)
@click.option("-p", "--patch", metavar="PATCH", help="Patch of the agent's pod, in JSON or YAML.")
@click.option(
    "--patch-file", metavar="FILE", type=FILE, help="File with a patch of the agent's pod."
)
@click.option(
    "--patch-type",
    type=click.Choice(["strategic", "merge", "json"]),
    help="Type of the patch.  [default: json for a list, else strategic]",
)
@click.option("--server.image", "server_image", metavar="IMAGE", help="Image of the agent.")
@click.option(
    "--agent-namespace",
    metavar="NAME",
    shell_complete=namespaces,
    help="Namespace of the agent.  [default: the context's, or the targets' if that forbids it]",
)
@click.option(
    "--idle-timeout",
    metavar="TIME",
    help="Time for which the agent stays if this process is killed or cut off.  [default: 5m]",
)
@click.option(
    "--pod-running-timeout",
    metavar="TIME",
    default="1m",
    show_default=True,
    help="Time to wait until a pod runs.",
)
@older
@connection
@click.option(
    "-v",
    "--v",
    "verbosity",
    type=int,
    default=0,
    show_default=True,
    help="Log level: 0 for warnings, 3 for each step, 4 for details, 5 for everything.",
)
@click.option("-V", "--version", is_flag=True, help="Print the version and exit.")
def relay(words: tuple[str, ...], verbosity: int, version: bool, **flags: Any) -> int:
    """Forward local TCP and UDP ports to a service, pod or workload, or to a host or address that
    the cluster can reach.

    Forwards survive rolling updates and lost connections.
    """
    if version:
        echo(json.dumps({"Version": f"v{__version__}"}))
        return 0
    set_up_logging(_verbosity(verbosity))
    given = understand(flags)
    file = given["file"]
    timeout = running_timeout(given["pod_running_timeout"] or "")
    preload()
    from krelay.cli import up
    from krelay.config.files import read_once
    from krelay.config.sources import Proxy, Selection, Words
    from krelay.model import LOOPBACK
    from krelay.supervisor.contexts import Contexts

    proxy = words == ("proxy",) and file is None
    listens, given["address"] = given["address"], () if proxy else given["address"]
    overlay = _overlay(given)
    source: up.FileSource
    if file is not None and words:
        raise UsageError("both a file and a target", hint="add the target to the file")
    if file is not None:
        # A line of targets.txt is a command line; a krelay.yaml has its own default.
        listen = LOOPBACK if overlay.listens else LOCALHOST
        source = Selection(
            file, environ=os.environ, text=read_once(file), overlay=overlay, listen=listen
        )
    elif proxy:
        source = Proxy(overlay=overlay)
        if listens:
            source = Proxy(listens[-1], overlay=overlay)
    elif words:
        overlay = replace(overlay, listens=overlay.listens or (LOCALHOST,))
        source = Words(words, overlay)
    else:
        hint = "for example `kubectl relay svc/nginx 8080:80`; see `-h` for more"
        raise UsageError("TYPE/NAME and ports are required", hint=hint)
    contexts = Contexts(given["kubeconfig"], overrides(given))
    return up.run(
        source,
        announce=_announce,
        contexts=contexts,
        must_exist=True,
        pod_running_timeout=timeout if isinstance(source, Words) else None,
        as_kubectl=True,
    )


def main() -> int:
    """Run `kubectl relay`; return its exit code."""
    return run_command(relay, "kubectl relay")


def complete() -> int:
    """Run `kubectl_complete-relay WORD...`, which kubectl calls to complete `kubectl relay`."""
    from krelay.cli.flags.completion import run

    run(relay, "kubectl relay", sys.argv[1:])
    return 0
