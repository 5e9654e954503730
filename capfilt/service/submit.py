"""`capfilt submit`: hand a run to a cluster, unless somebody is at its OUTPUT already."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from capfilt import logs
from capfilt.config import RunConfig
from capfilt.errors import CommitError, InputError
from capfilt.io.lease import await_free
from capfilt.run.request import absolute
from capfilt.run.webhook import ENVIRONMENT as WEBHOOK
from capfilt.run.webhook import Webhook
from capfilt.run.where import Where
from capfilt.service.cluster import JobServer
from capfilt.service.entrypoint import command_line, pack
from capfilt.service.job import name_of

log = logging.getLogger("capfilt")


def submit(
    config: RunConfig,
    where: Where,
    server: JobServer,
    *,
    ship_code: bool = False,
    webhook: str | None = None,
) -> str:
    """Start a run as a job.

    Args:
        config: What to do; it travels along.
        where: On what, and with what hardware; local paths are the cluster's.
        server: Of the cluster.
        webhook: Is told how the job ends; the cluster's people can see it among the job's facts.
        ship_code: Run this machine's capfilt, not the one that the cluster has installed.

    Returns:
        The job's id.

    Raises:
        CommitError: Somebody works on OUTPUT already: says who.
        ConfigError: A place is none to write to, or the server does not take the job.
    """
    Webhook(webhook, command="submit", output=where.output)  # says now if it is none
    environment = {} if webhook is None else {WEBHOOK: webhook}
    environment[logs.ENVIRONMENT] = logs.form()
    config, where = absolute(config, where)
    where.check_places()
    earlier = server.of(where.output)
    for job in earlier:
        if not job.is_over:
            raise CommitError(
                f"{where.output} is being worked on by job {job.id} ({job.status.lower()}): "
                f"`capfilt logs {job.id}` shows it, `capfilt stop {job.id}` ends it"
            )
    try:
        await_free(where.output)
    except InputError as error:
        log.info("whether OUTPUT is free is left to the job: %s", error)
    job_id = f"{name_of(where.output)}-{max((job.number for job in earlier), default=0) + 1}"
    facts = {"input": where.input, "output": where.output}
    with tempfile.TemporaryDirectory(prefix="capfilt-") as folder:
        pack(Path(folder), config, ship_code=ship_code)
        server.submit(command_line(where), Path(folder), job_id, facts, environment)
    return job_id
