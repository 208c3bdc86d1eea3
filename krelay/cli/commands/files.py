"""Commands for files: `init`, `check`, `plan`, `import`, `rbac` and `schema`."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from krelay.cli.flags.connection import kubeconfig_names, namespaces
from krelay.cli.flags.values import FILE
from krelay.cli.options import (
    Cluster,
    cluster_options,
    complete_names_or_words,
    file_option,
    kubeconfig_option,
    output_option,
    running_file_option,
    select,
)
from krelay.cli.output import echo
from krelay.errors import NotReadyError, UsageError

if TYPE_CHECKING:
    from krelay.config.sources import Selection


@click.command()
@click.option(
    "-f", "--file", metavar="FILE", type=FILE, help="File to write.  [default: ./krelay.yaml]"
)
@click.option(
    "-n",
    "--namespace",
    "--from-namespace",
    "namespace",
    shell_complete=namespaces,
    help="Add the Services of this namespace.",
)
@click.option(
    "--context", shell_complete=kubeconfig_names, help="Kubeconfig context, which the file keeps."
)
@kubeconfig_option
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(
    file: str | None,
    namespace: str | None,
    context: str | None,
    kubeconfig: str | None,
    force: bool,
) -> int:
    """Write a starter krelay.yaml, without prompting."""
    from krelay.cli import file_commands

    return file_commands.init(
        file, namespace or None, context or None, kubeconfig or None, force=force
    )


@click.command()
@file_option
@cluster_options
@click.option(
    "--cluster", "in_cluster", is_flag=True, help="Check its targets in their clusters, too."
)
@output_option
@click.argument("path", metavar="[FILE]", required=False, type=FILE)
def check(
    file: str | None, cluster: Cluster, in_cluster: bool, output: str, path: str | None
) -> int:
    """Check a file without starting anything.

    With --cluster, also check that each context is reached, that targets and their ports exist and
    have ready endpoints, and that this user has the rights that the file needs.
    """
    from krelay.cli import file_commands

    if file is not None and path is not None:
        raise UsageError("two files to check", hint="name one, with or without `-f`")
    return file_commands.check(
        select(file or path, cluster=cluster),
        json=output == "json",
        in_cluster=in_cluster,
        kubeconfig=cluster.kubeconfig,
    )


@click.command()
@running_file_option
@cluster_options
@output_option
@click.option("--exit-code", is_flag=True, help="Exit with 3 if there are changes.")
@click.argument("candidate", required=False, type=FILE)
def plan(
    file: str | None, cluster: Cluster, output: str, exit_code: bool, candidate: str | None
) -> int:
    """Show what an edit would change in the running krelay.

    Compares what runs with the file as it is now, or with CANDIDATE (`-` reads standard input).
    Without --context and --namespace, those of the running krelay apply.
    """
    from krelay.cli import file_commands

    if file == "-":  # before it is read
        raise UsageError("`-f` names the file that krelay runs", hint="try `krelay plan -`")
    edit = None if candidate is None else select(candidate, cluster=cluster)
    words = [*(["-f", file] if file else []), *cluster.words()]
    selection = select(file, cluster=cluster)
    changed = file_commands.plan(selection, edit, words, json=output == "json")
    return NotReadyError.exit_code if changed and exit_code else 0


@click.command("import")
@click.argument("path", metavar="FILE|kubefwd", type=FILE)
@click.option(
    "-n",
    "--namespace",
    "namespaces",
    multiple=True,
    shell_complete=namespaces,
    help="Namespace, for kubefwd.",
)
@click.option(
    "--context",
    shell_complete=kubeconfig_names,
    help="Kubeconfig context of the result, for targets without one.",
)
@kubeconfig_option
@click.option("--offline", is_flag=True, help="Ask no cluster for the ports of Services.")
def import_(
    path: str,
    namespaces: tuple[str, ...],
    context: str | None,
    kubeconfig: str | None,
    offline: bool,
) -> int:
    """Convert another tool's file into a krelay.yaml, and print it.

    FILE is a targets.txt, a kftray export or a .kportal.yaml. `kubefwd` converts the Services of
    the namespaces. kftray and kportal name ports of pods: the clusters of the file are asked which
    port of a Service leads there.
    """
    from krelay.cli import file_commands

    return file_commands.import_(
        path, namespaces, context or None, kubeconfig or None, offline=offline
    )


@click.command()
@file_option
@click.option("--user", "users", multiple=True, metavar="NAME", help="Bind the Roles to this user.")
@click.option(
    "--group", "groups", multiple=True, metavar="NAME", help="Bind the Roles to this group."
)
@click.option(
    "--serviceaccount",
    "accounts",
    multiple=True,
    metavar="NAMESPACE:NAME",
    help="Bind the Roles to this service account.",
)
@click.option(
    "--optional",
    is_flag=True,
    help="Include rights that only make tunnels faster or errors clearer.",
)
@click.option(
    "--context",
    shell_complete=kubeconfig_names,
    help="Print only the Roles for this kubeconfig context, instead of the file's.",
)
@click.option(
    "-n",
    "--namespace",
    shell_complete=namespaces,
    help="Namespace of targets that name none, instead of the file's.",
)
@kubeconfig_option
@click.option(
    "--agent-namespace",
    metavar="NAMESPACE",
    shell_complete=namespaces,
    help="Namespace of the agent.",
)
@click.option(
    "--via",
    type=click.Choice(["auto", "agent", "direct"]),
    help="Way into the cluster, as for `kubectl relay`.",
)
@click.option("--name", metavar="NAME", help="Name of the Roles and their bindings.")
@click.argument(
    "words",
    metavar="[NAME...|TYPE/NAME PORT...|proxy]",
    nargs=-1,
    shell_complete=complete_names_or_words,
)
def rbac(
    file: str | None,
    users: tuple[str, ...],
    groups: tuple[str, ...],
    accounts: tuple[str, ...],
    optional: bool,
    context: str | None,
    namespace: str | None,
    kubeconfig: str | None,
    agent_namespace: str | None,
    via: str | None,
    name: str | None,
    words: tuple[str, ...],
) -> int:
    """Print Roles with the least rights that the targets need.

    With NAMEs, print only the rights for these targets of the file. TYPE/NAME PORT is a target as
    for `kubectl relay`, and `proxy` stands for its proxy: they need no file.
    """
    from krelay.cli import file_commands
    from krelay.config.sources import PROXY_WORD, Overlay, Proxy, Words
    from krelay.model import Via

    overlay = Overlay(
        namespace=namespace, agent_namespace=agent_namespace, via=Via(via) if via else None
    )
    source: Selection | Words | Proxy
    if file is None and words == (PROXY_WORD,):
        source = Proxy(overlay=overlay)
    elif file is None and words and "/" in words[0]:
        source = Words(words, overlay)
    else:
        cluster = Cluster(namespace=namespace)
        source = dataclasses.replace(select(file, names=words, cluster=cluster), overlay=overlay)
    return file_commands.rbac(
        source,
        file_commands.rbac_subjects(users, groups, accounts),
        optional=optional,
        context=context or None,
        namespace=namespace or None,
        kubeconfig=kubeconfig or None,
        name=name,
    )


@click.command()
def schema() -> int:
    """Print the JSON Schema of krelay.yaml."""
    from krelay import config

    echo(config.schema_text().rstrip())
    return 0
