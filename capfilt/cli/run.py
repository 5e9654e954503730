"""`capfilt run`, `watch` and `retry-failed`, and what looks at OUTPUT: `status`, `verify`."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from capfilt import logs, sigterm
from capfilt.cli.app import Json, app, print_result
from capfilt.cli.options import (
    Address,
    GpusPerWorker,
    Local,
    RunOptions,
    UntilIdle,
    Webhook,
    Workers,
    until_idle_s,
    with_run_options,
)

if TYPE_CHECKING:
    from capfilt.config import RunConfig
    from capfilt.run.where import Where


@app.command()
@with_run_options
def run(
    options: RunOptions, address: Address = None, local: Local = False, as_json: Json = False
) -> None:
    """Caption and filter every shard of INPUT into OUTPUT; run it again to resume."""
    where = options.where(address=address, local=local)
    work("run", options.config(), where, webhook=options.webhook, as_json=as_json)


@app.command()
@with_run_options
def watch(
    options: RunOptions,
    until_idle: UntilIdle = None,
    address: Address = None,
    local: Local = False,
    as_json: Json = False,
) -> None:
    """Like `run`, but stay and take each shard of INPUT as img2dataset finishes it."""
    idle_s = until_idle_s(until_idle)
    where = options.where(address=address, local=local, watch=True, until_idle_s=idle_s)
    work("watch", options.config(), where, webhook=options.webhook, as_json=as_json)


@app.command("retry-failed")
def retry_failed(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    workers: Workers = None,
    gpus_per_worker: GpusPerWorker = None,
    address: Address = None,
    local: Local = False,
    webhook: Webhook = None,
    as_json: Json = False,
) -> None:
    """Do the shards that a run has given up again, as it did them, and no others."""
    from capfilt.run.retry import retry_of

    config, where = retry_of(
        output_url, address=address, local=local, workers=workers, gpus_per_worker=gpus_per_worker
    )
    work("retry-failed", config, where, webhook=webhook, as_json=as_json)


def work(
    command: str, config: RunConfig, where: Where, *, webhook: str | None, as_json: bool
) -> None:
    """Run, show progress, say what came of it; exit with 1 where a shard failed or is missing."""
    from capfilt.run import webhook as hooks
    from capfilt.run.job import run as run_job
    from capfilt.show.datasets import summary_text

    hook = hooks.Webhook(webhook, command=command, output=where.output)
    sigterm.as_interrupt()  # give shards back
    live = sys.stdout.isatty() and sys.stderr.isatty()
    # Ray prints to stdout when a worker dies.
    with hook.following(), contextlib.redirect_stdout(sys.stderr):
        summary = run_job(config, where, live=live)
    logs.log.debug("the %s has ended", command, extra=logs.about(**summary.to_dict()))
    hook.finished(summary)
    print_result(summary.to_dict() if as_json else summary_text(summary))
    if summary.exit_code:
        raise typer.Exit(summary.exit_code)


@app.command()
def status(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Say how far a run is: shards by state, images and texts by verdict."""
    from capfilt.run.status import status as read_status
    from capfilt.show.datasets import status_text

    found = read_status(output_url)
    print_result(found.to_dict() if as_json else status_text(found))


@app.command()
def verify(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Read every file of a run again and compare it with its commit: hashes and counts."""
    from capfilt.run.verify import verify as verify_output
    from capfilt.show.datasets import verification_text

    found = verify_output(output_url)
    print_result(found.to_dict() if as_json else verification_text(found))
    if found.problems:
        raise typer.Exit(1)
