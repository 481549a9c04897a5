"""The command line: `ipfsreg init | daemon | id | status | log | rollback | verify | repair | epoch | passwd |
gc`.

Commands import what they run when they run it: `ipfsreg --help` must not load a network stack.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from ipfsreg import __version__
from ipfsreg.config import Config, load_config
from ipfsreg.errors import IpfsregError, StoreDamaged

DAMAGED_STATUS = 65
"""EX_DATAERR of sysexits.h: starting again does not help."""

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="IPFSREG_CONFIG",
    help="The node's TOML file; without one, defaults and the environment.",
)


class _Damaged(click.ClickException):
    exit_code = DAMAGED_STATUS


class _Group(click.Group):
    """Turns our own failures into one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except IpfsregError as error:
            raise _said(error) from error
        except BaseExceptionGroup as group:  # raised again where it is not one failure of ours
            # A part that cannot start fails inside nurseries, which wrap what it said.
            found = _only_failure(group)
            if found is not None:
                raise _said(found) from group
            # A bug of ours. A report of it shows where it began, not the dozen nurseries around it.
            for failure in _leaves(group):
                traceback.print_exception(failure, chain=False)
            raise click.ClickException("a part of the node failed, as shown above") from group


def _said(error: IpfsregError) -> click.ClickException:
    return _Damaged(str(error)) if isinstance(error, StoreDamaged) else click.ClickException(str(error))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for inner in group.exceptions:
        if isinstance(inner, BaseExceptionGroup):
            yield from _leaves(inner)
        else:
            yield inner


def _only_failure(group: BaseExceptionGroup[BaseException]) -> IpfsregError | None:
    ours, rest = group.split(IpfsregError)
    if ours is None or rest is not None:
        return None
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, IpfsregError)
    return first


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ipfsreg")
def main() -> None:
    """A container registry with no centre: push to any node, pull from every other."""


@main.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option(
    "--join", "joins", multiple=True, metavar="MULTIADDR", help="A node of the swarm, as its daemon tells it."
)
@click.option(
    "--swarm-key", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The swarm's key; else a new one."
)
@click.option("--listen", metavar="MULTIADDR", help="Where peers reach it [/ip4/0.0.0.0/tcp/4619 or the next free].")
@click.option("--http", metavar="HOST:PORT", help="Where clients reach it [127.0.0.1:5000 or the next free].")
def init(directory: Path, joins: tuple[str, ...], swarm_key: Path | None, listen: str | None, http: str | None) -> None:
    """Write a node's configuration, identity and swarm key."""
    from ipfsreg.cli.init import initialise

    made = initialise(directory, joins=joins, swarm_key=swarm_key, listen=listen, http=http)
    click.echo(f"peer ID    {made.peer_id}")
    click.echo(f"swarm key  {made.swarm_key}")
    click.echo(f"start it   ipfsreg daemon --config {made.config}")


@main.command()
@CONFIG_OPTION
def daemon(config_path: Path | None) -> None:
    """Run a node until SIGTERM or SIGINT."""
    from ipfsreg.cli.daemon import run

    run(_load(config_path))


@main.command(name="id")
@CONFIG_OPTION
def show_id(config_path: Path | None) -> None:
    """Print the node's peer ID, running or not."""
    from ipfsreg.datastore import identity_of

    click.echo(identity_of(_load(config_path)).peer_id)


@main.command()
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def status(config_path: Path | None, as_json: bool) -> None:
    """Ask the running node for its peers, heads, tags, blobs and bytes."""
    from ipfsreg.cli.status import ask, describe

    answer = ask(_load(config_path))
    click.echo(json.dumps(answer, indent=2) if as_json else describe(answer))


@main.command(name="log")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
@click.argument("name", metavar="REPO:TAG")
def show_log(config_path: Path | None, as_json: bool, name: str) -> None:
    """Show every move of a tag: how many moves ago, when, by which node, from what to what.

    Moves that lost against a concurrent one are marked.
    """
    from ipfsreg.cli.log import describe_move, moves_of

    moves = moves_of(_load(config_path), name)
    click.echo(json.dumps(moves, indent=2) if as_json else "\n".join(map(describe_move, moves)))


@main.command()
@CONFIG_OPTION
@click.option("--to", required=True, metavar="DIGEST|STEP", help="A manifest, or how many moves back, as `log` shows.")
@click.argument("name", metavar="REPO:TAG")
def rollback(config_path: Path | None, to: str, name: str) -> None:
    """Let a tag point again at what it pointed at before. The history goes on; nothing of it is lost."""
    from ipfsreg.cli.log import describe_move, roll_back

    click.echo(describe_move(roll_back(_load(config_path), name, to)))


@main.command()
@CONFIG_OPTION
@click.option("--quick", is_flag=True, help="Do not read the bytes of large blobs.")
def verify(config_path: Path | None, quick: bool) -> None:
    """Check the datastore against its hashes; exit status 1 if anything is wrong. The node may run."""
    import trio

    from ipfsreg.cli.repair import verify as look

    found = trio.run(partial(look, Path(_load(config_path).node.datastore_path), hash_files=not quick))
    click.echo("\n".join(found) if found else "nothing is wrong")
    sys.exit(bool(found))


@main.command()
@CONFIG_OPTION
@click.option("--epoch", "number", type=int, metavar="N", help="Of the names, where the database cannot tell any more.")
@click.option("--head", metavar="CID", help="What that epoch began with, if it is not the first.")
def repair(config_path: Path | None, number: int | None, head: str | None) -> None:
    """Put a damaged database aside and make a new one of what can be trusted. The node must not run."""
    import trio

    from ipfsreg.cli.repair import repair as mend
    from ipfsreg.cli.repair import told_epoch
    from ipfsreg.datastore import alone_on, identity_of

    config = _load(config_path)
    directory = Path(config.node.datastore_path)
    with alone_on(directory):
        report = trio.run(mend, directory, identity_of(config).peer_id, told_epoch(number, head))
    click.echo(f"names      {report.names} in {report.nodes} nodes; {report.missing} nodes to come from other nodes")
    click.echo(f"blobs      {report.blobs}")
    for digest in report.damaged:
        click.echo(f"           {digest} is damaged: pull it again, or push it")
    if report.aside is not None:
        click.echo(f"put aside  {report.aside}; delete it when you miss nothing")


@main.group()
def epoch() -> None:
    """Leave the history of the names behind (docs/operations.md): seal, compare, next."""


@epoch.command(name="status")
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def show_epoch(config_path: Path | None, as_json: bool) -> None:
    """Ask the running node for its epoch and the head that the next one would begin with."""
    from ipfsreg.cli.status import ask, describe_epoch

    answer = ask(_load(config_path), "/epoch")
    click.echo(json.dumps(answer, indent=2) if as_json else describe_epoch(answer))


@epoch.command()
@CONFIG_OPTION
@click.option("--undo", is_flag=True, help="Write again.")
def seal(config_path: Path | None, undo: bool) -> None:
    """Let the running node write no names any more, also after a restart."""
    from ipfsreg.cli.status import describe_epoch, tell

    click.echo(describe_epoch(tell(_load(config_path), "/seal", {"undo": "yes"} if undo else {})))


@epoch.command(name="next")
@CONFIG_OPTION
@click.option("--head", required=True, metavar="CID", help="What `epoch status` shows on all nodes.")
@click.option("--discard", is_flag=True, help="Drop the names here and fetch those below the head from peers.")
def next_epoch(config_path: Path | None, head: str, discard: bool) -> None:
    """Begin the next epoch with the names that are here. The node must not run."""
    import trio

    from ipfsreg.cli.epoch import rotate
    from ipfsreg.datastore import alone_on

    config = _load(config_path)
    with alone_on(Path(config.node.datastore_path)):
        done = trio.run(partial(rotate, config, head, discard=discard))
    click.echo(f"epoch      {done.epoch}, in the topic {done.topic}")
    click.echo(f"names      {done.before.names} before, {done.after.names} after")
    click.echo(f"rows       {done.before.rows} before, {done.after.rows} after")
    click.echo(f"database   {done.before.bytes} bytes before, {done.after.bytes} after")


@main.command()
@click.option("--delete", is_flag=True, help="Take the user out.")
@click.option("--stdin", is_flag=True, help="Read the password from standard input, a line.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.argument("user")
def passwd(file: Path, user: str, delete: bool, stdin: bool) -> None:
    """Set a user's password in FILE, for auth.htpasswd. A running node takes it within seconds."""
    from ipfsreg.cli.passwd import remove_user, set_password

    if delete:
        remove_user(file, user)
        click.echo(f"removed {user}")
        return
    if stdin:
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    click.echo(f"{'added' if set_password(file, user, password) else 'changed'} {user}")


@main.command(name="gc")
@CONFIG_OPTION
@click.option("--dry-run", is_flag=True, help="Only tell what is garbage and when it may go.")
@click.option("--grace", "grace_s", type=float, metavar="SECONDS", help="In place of gc.grace_s and gc.blob_grace_s.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for programs.")
def collect_garbage(config_path: Path | None, dry_run: bool, grace_s: float | None, as_json: bool) -> None:
    """Delete what no repository refers to and has been so for the grace, while the node runs."""
    from ipfsreg.cli.gc import collect, describe_report

    report = collect(_load(config_path), dry_run=dry_run, grace_s=grace_s)
    click.echo(json.dumps(report, indent=2) if as_json else describe_report(report))


def _load(path: Path | None) -> Config:
    return load_config(path, os.environ)


if __name__ == "__main__":
    sys.exit(main())
