"""`capfilt submit`, `jobs`, `logs` and `stop`: runs as jobs of a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

from capfilt.cli.app import Json, app, print_result
from capfilt.cli.options import RunOptions, UntilIdle, until_idle_s, with_run_options

Server = Annotated[
    str | None,
    typer.Option(
        "--address", help="Job server of a Ray cluster: http://HOST:8265; default: this machine's."
    ),
]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id; or its name or OUTPUT, for the latest.")
]


@app.command()
@with_run_options
def submit(
    options: RunOptions,
    watch: Annotated[bool, typer.Option("--watch", help="Submit a `capfilt watch`.")] = False,
    until_idle: UntilIdle = None,
    ship_code: Annotated[
        bool,
        typer.Option("--ship-code", help="Run this capfilt, not the one installed there."),
    ] = False,
    address: Server = None,
) -> None:
    """Start a run as a job of a Ray cluster, and print the job's id."""
    from capfilt.service.cluster import JobServer
    from capfilt.service.submit import submit as submit_run

    config = options.config()
    where = options.where(watch=watch, until_idle_s=until_idle_s(until_idle))
    server = JobServer.at(address)
    job = submit_run(config, where, server, ship_code=ship_code, webhook=options.webhook)
    print_result(job)


@app.command()
def jobs(address: Server = None, as_json: Json = False) -> None:
    """List a cluster's jobs that `submit` has started."""
    from capfilt.service.cluster import JobServer
    from capfilt.show.datasets import jobs_text

    found = JobServer.at(address).jobs()
    print_result({"jobs": [job.to_dict() for job in found]} if as_json else jobs_text(found))


@app.command()
def logs(
    job: JobName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
    address: Server = None,
) -> None:
    """Print what a job has written; with `-f`, exit as the job does: 0 or 1."""
    from capfilt.cli.app import print_piece
    from capfilt.service.cluster import JobServer

    server = JobServer.at(address)
    found = server.job(job)
    if not follow:
        print_piece(server.logs(found))
        return
    for piece in server.follow(found):
        print_piece(piece)
    if server.job(found.id).status != "SUCCEEDED":
        raise typer.Exit(1)


@app.command()
def stop(job: JobName, address: Server = None) -> None:
    """End a job: it gives its shards back, and the next one goes on where it stopped."""
    from capfilt.service.cluster import JobServer

    server = JobServer.at(address)
    ended = server.stop(server.job(job))
    print_result(f"{ended.id}: {ended.status.lower()}")
