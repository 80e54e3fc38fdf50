"""``optkit push``: an export on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import click

from optkit.commands import options


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo", metavar="REPO")
@click.option("--create", is_flag=True, help="Make the repository if there is none; only you can see it.")
@click.option("--dry-run", is_flag=True, help="Show what would be sent, and send nothing.")
@click.option("--force", is_flag=True, help="Replace files of REPO that differ from those in DIR.")
@options.tracebacks
def push(folder: Path, repo: str, create: bool, dry_run: bool, force: bool) -> None:
    """Send an export to the Hugging Face hub.

    \b
    DIR is a folder that optkit export wrote, and REPO a name such as
    me/my-model. Test files stay here. Log in with "hf auth login", or
    set HF_TOKEN. HF_ENDPOINT names another hub.
    """
    from optkit.deploy import push as push_folder

    click.echo(push_folder(folder, repo, create=create, dry_run=dry_run, force=force).summary())
