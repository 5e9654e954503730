"""The command line. A command parses, makes one library call and prints what came of it.

stdout is the result (`--json` for machines), stderr has progress and logs. Exit codes: 0 all done,
1 some failed (or a training that cannot go on), 2 wrong usage, config, model or input, 130
interrupted.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from capfilt import __version__
from capfilt.errors import CapfiltError, ConfigError, InputError, TrainingError

app = typer.Typer(
    name="capfilt",
    help="CapFilt as a service: caption and filter web image-text shards with BLIP.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

evaluate = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(
    evaluate, name="evaluate", help="Measure a captioner and a filter: retrieval, captions, noise."
)

INTERRUPTED = 130  # typer's exit code for Ctrl-C

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_CAPTIONS_FILE = "COCO-style JSON, or JSON(L) rows of image and caption(s)."
Images = Annotated[
    str | None, typer.Option(help="Folder that image paths start from; default: the file's own.")
]
Split = Annotated[str | None, typer.Option(help="Take the rows of this `split` alone.")]
Threshold = Annotated[
    float | None, typer.Option(help="Match probability from which a text is kept; default: 0.5.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set a config key of `run`; repeatable."),
]


def main() -> None:
    """The `capfilt` command: an error for people is one line; `--debug` adds the traceback."""
    try:
        app()
    except CapfiltError as error:
        if _debugging():
            raise
        print(f"capfilt: {_rank()}{error}", file=sys.stderr)
        sys.exit(1 if isinstance(error, TrainingError) else 2)
    except Exception as error:
        if _debugging():
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"capfilt: {_rank()}unexpected {what} (capfilt --debug ... shows where)",
            file=sys.stderr,
        )
        sys.exit(2)
    except SystemExit as end:
        if end.code == INTERRUPTED and not _rank():
            print(
                "capfilt: interrupted; the same command goes on where it stopped", file=sys.stderr
            )
        raise


def _rank() -> str:
    """Which process speaks, where torchrun has started several."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f"[rank {rank}] "


def _debugging() -> bool:
    return "--debug" in sys.argv[1:]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"capfilt {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("capfilt").setLevel(logging.DEBUG if debug else logging.INFO)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@app.command()
def run(
    input_url: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Shards: a folder, a glob or a brace range, local or any fsspec URL.",
        ),
    ],
    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of the new dataset, any fsspec URL.")
    ],
    captioner: Annotated[
        str | None, typer.Option(help="BLIP captioner: folder or hub id, or `none`.")
    ] = None,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", help="BLIP (or CLIP) filter: folder or hub id, or `none`."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="blip (default) or blip2.")] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one config key; repeatable."),
    ] = None,
    format_: Annotated[
        str | None, typer.Option("--format", help="webdataset (default) or parquet.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Write texts and scores only.")
    ] = False,
    human: Annotated[
        str | None,
        typer.Option(help="Human-annotated pairs that join unfiltered: COCO-style JSON or shards."),
    ] = None,
    human_images: Annotated[
        str | None,
        typer.Option(help="Image folder of the JSON; default: the JSON's own folder."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="How many; default: one per GPU, or one per CPU node.")
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Fractions allowed; 0 uses CPUs. Default: 1 if any.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster; default: start Ray on this machine.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="One worker in this process, without Ray.")
    ] = False,
    limit: Annotated[int | None, typer.Option(help="Process at most this many shards.")] = None,
    allow_unfinished: Annotated[
        bool,
        typer.Option("--allow-unfinished", help="Take img2dataset shards without _stats.json."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Redo shards that another config or model made.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Caption and filter every shard of INPUT into OUTPUT; run it again to resume."""
    from capfilt.config import resolve
    from capfilt.run.job import Where
    from capfilt.run.job import run as run_job
    from capfilt.show import summary_text

    resolved = resolve(
        yaml_text=_read_config(config),
        yaml_name=str(config),
        preset=preset,
        options={
            "captioner": captioner,
            "filter": filter_,
            "output.format": format_,
            "output.images": False if no_images else None,
        },
        overrides=overrides or (),
    )
    where = Where(
        input=input_url,
        output=output_url,
        human=human,
        human_images=human_images,
        allow_unfinished=allow_unfinished,
        overwrite=overwrite,
        limit=limit,
        local=local,
        address=address,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: give shards back
    live = sys.stdout.isatty() and sys.stderr.isatty()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies
        summary = run_job(resolved, where, live=live)
    _print(summary.to_dict() if as_json else summary_text(summary))
    if summary.shards_failed:
        raise typer.Exit(1)


@app.command()
def status(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Say how far a run is: shards by state, images and texts by verdict."""
    from capfilt.run.status import status as read_status
    from capfilt.show import status_text

    found = read_status(output_url)
    _print(found.to_dict() if as_json else status_text(found))


@app.command()
def verify(
    output_url: Annotated[str, typer.Argument(metavar="OUTPUT", help="Folder of a run.")],
    as_json: Json = False,
) -> None:
    """Read every file of a run again and compare it with its commit: hashes and counts."""
    from capfilt.run.verify import verify as verify_output
    from capfilt.show import verification_text

    found = verify_output(output_url)
    _print(found.to_dict() if as_json else verification_text(found))
    if found.problems:
        raise typer.Exit(1)


@app.command()
def ingest(
    urls: Annotated[
        str, typer.Argument(metavar="URLS", help="A parquet, csv or tsv of URLs and captions.")
    ],
    output_url: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="Folder of the img2dataset shards.")
    ],
    url_column: Annotated[
        str | None, typer.Option(help="Column of the URLs; default: url, URL.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the texts; default: caption, TEXT, text, ...")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="webdataset, parquet or files.")
    ] = "webdataset",
    image_size: Annotated[
        int, typer.Option(help="Larger images are shrunk until their shorter edge is this.")
    ] = 384,
    samples_per_shard: Annotated[int, typer.Option(help="URLs per shard.")] = 10_000,
    processes: Annotated[int | None, typer.Option(help="Default: one per core.")] = None,
    threads: Annotated[int, typer.Option(help="Downloads at once, per process.")] = 32,
    timeout_s: Annotated[int, typer.Option("--timeout", help="Seconds per request.")] = 10,
    allow_private_hosts: Annotated[
        bool,
        typer.Option(
            "--allow-private-hosts",
            help="Also fetch from private, loopback and link-local hosts (your own lists only).",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Download URLS with img2dataset, with defaults that suit CapFilt; run it again to resume."""
    from capfilt.ingest import ingest as download
    from capfilt.show import ingested_text

    found = download(
        urls,
        output_url,
        url_column=url_column,
        caption_column=caption_column,
        format=format_,
        image_size=image_size,
        samples_per_shard=samples_per_shard,
        processes=processes,
        threads=threads,
        timeout_s=timeout_s,
        allow_private_hosts=allow_private_hosts,
    )
    _print(found.to_dict() if as_json else ingested_text(found))
    if found.rows and not found.succeeded:
        hint = "" if allow_private_hosts else " (--allow-private-hosts for hosts of your own)"
        raise InputError(
            f"{output_url}: none of {found.rows:,} URLs gave an image{hint}; finished shards are "
            "not tried again, so remove the folder before the next try"
        )
    if found.shards_failed:
        raise typer.Exit(1)


@app.command()
def train(
    stage: Annotated[
        str | None, typer.Argument(metavar="STAGE", help="What to train; --list names them.")
    ] = None,
    config: Annotated[Path | None, typer.Option("-c", "--config", help="YAML file.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one config key; repeatable."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for checkpoints, log and models; the same one resumes."),
    ] = None,
    num_workers: Annotated[
        int | None,
        typer.Option(help="Ray: how many; default: one per GPU, or one per CPU node."),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(help="Ray: whole ones; 0 uses CPUs. Default: 1 if any.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray: a cluster; default: start Ray on this machine.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Name the stages.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the stage's config as YAML; train nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train STAGE; run it again to resume.

    One process by itself, several by torchrun (`torchrun --nproc-per-node 8 -m capfilt train ...`),
    or a Ray cluster's when one of the options marked "Ray" is given.
    """
    if list_:
        from capfilt.catalog import trainings

        _print(trainings() if as_json else _lines(trainings()))
        return
    if stage is None:
        raise ConfigError("STAGE is missing: capfilt train --list names them")
    from capfilt.train.stage import Stage

    chosen = Stage.load(stage)
    resolved = chosen.resolve(
        yaml_text=_read_config(config), yaml_name=str(config), overrides=overrides or ()
    )
    if show:
        from capfilt.schema import to_dict, to_yaml

        _print(to_dict(resolved)) if as_json else typer.echo(to_yaml(resolved), nl=False)
        return
    if out is None:
        raise ConfigError("--out is missing: a folder for checkpoints, log and models")
    live = sys.stdout.isatty() and sys.stderr.isatty()
    place = out.expanduser().absolute()
    with contextlib.redirect_stdout(sys.stderr):  # Ray prints there when a worker dies
        if (num_workers, gpus_per_worker, address) == (None, None, None):
            summary = chosen.train(resolved, place, live=live)
        else:
            try:
                from capfilt.train.cluster import Cluster
            except ImportError:
                need = "training on Ray needs more packages: pip install 'capfilt[train]'"
                raise ConfigError(need) from None
            cluster = Cluster(num_workers, gpus_per_worker, address)
            summary = cluster.train(chosen, resolved, place, live=live)
    if not _rank():
        from capfilt.show import trained_text

        _print(summary.to_dict() if as_json else trained_text(summary))


@app.command()
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A .pth of BLIP's authors, or transformers' pytorch_model.bin or its folder.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Gets the checkpoint.")],
    role: Annotated[str, typer.Option("--as", help="captioner or filter: the half to take.")],
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help="BERT's vocab.txt or a tokenizer's folder; default: SOURCE, if a folder."
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Interpolate positions to this side in pixels.")
    ] = None,
) -> None:
    """Make a pickled BLIP checkpoint a folder that run and transformers load."""
    if role not in ("captioner", "filter"):
        raise ConfigError(f"--as is captioner or filter, not {role}")
    from capfilt.models.checkpoint import Role
    from capfilt.models.convert import convert as make_folder

    half = cast(Role, role)
    _print(str(make_folder(source, folder, half, vocabulary=vocabulary, image_size=image_size)))


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes; made if absent.")] = Path(
        "demo-output"
    ),
    pictures: Annotated[int, typer.Option(help="How many.")] = 200,
) -> None:
    """Make pictures, serve them, ingest, caption and filter them: every part at work, untrained."""
    from capfilt.demo.demo import demo as run_demo

    run_demo(folder, pictures)


@evaluate.command("retrieval")
def evaluate_retrieval(
    filter_: Annotated[str, typer.Option("--filter", help="BLIP filter: folder or hub id.")],
    pairs: Annotated[str, typer.Option(help=_CAPTIONS_FILE)],
    images: Images = None,
    split: Split = None,
    k_test: Annotated[int, typer.Option(help="Candidates that ITM ranks again; 0: none.")] = 256,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Recall of images by texts and of texts by images, by ITC and then by ITM."""
    from capfilt.show import retrieval_text

    found = _evaluate("retrieval")(
        filter_, pairs, images, split=split, k_test=k_test, overrides=overrides or ()
    )
    _print(found.to_dict() if as_json else retrieval_text(found))


@evaluate.command("captions")
def evaluate_captions(
    captioner: Annotated[str, typer.Option(help="BLIP captioner: folder or hub id.")],
    pairs: Annotated[str, typer.Option(help=_CAPTIONS_FILE)],
    images: Images = None,
    split: Split = None,
    save: Annotated[
        str | None, typer.Option(help="Write the captions there, as JSON of image and caption.")
    ] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """BLEU and CIDEr of a captioner (3 beams, at most 20 tokens) against human captions."""
    from capfilt.io.publish import write_bytes
    from capfilt.show import captions_text

    found = _evaluate("captions")(captioner, pairs, images, split=split, overrides=overrides or ())
    if save is not None:
        write_bytes(save, json.dumps(found.rows(), indent=1, ensure_ascii=False).encode())
    _print(found.to_dict() if as_json else captions_text(found))


@evaluate.command("filter")
def evaluate_filter(
    filter_: Annotated[
        str, typer.Option("--filter", help="BLIP (or CLIP) filter: folder or hub id.")
    ],
    pairs: Annotated[str, typer.Option(help="JSON(L) rows of image, caption and label (1 or 0).")],
    images: Images = None,
    split: Split = None,
    threshold: Threshold = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """How well a filter tells matching texts from others: ROC AUC, precision, recall."""
    from capfilt.show import filter_quality_text

    found = _evaluate("filter_quality")(
        filter_, pairs, images, split=split, threshold=threshold, overrides=overrides or ()
    )
    _print(found.to_dict() if as_json else filter_quality_text(found))


@evaluate.command("noise")
def evaluate_noise(
    place: Annotated[
        str, typer.Argument(metavar="PLACE", help="OUTPUT of `capfilt run`, or a folder of images.")
    ],
    captioner: Annotated[
        str | None, typer.Option(help="For a folder of images: BLIP captioner.")
    ] = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", help="For a folder of images: BLIP filter.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Match probability from which a text is kept; default: the run's, 0.5."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take at most this many images.")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Noise ratio: the share of synthetic captions that the filter rejects."""
    from capfilt.show import noise_text

    found = _evaluate("noise")(
        place,
        captioner,
        filter_,
        threshold=threshold,
        limit=limit,
        overrides=overrides or (),
    )
    _print(found.to_dict() if as_json else noise_text(found))


def _evaluate(step: str) -> Any:
    """A step of the stage `evaluate`."""
    from capfilt.catalog import stage

    return stage("evaluate")[step]


def _read_config(path: Path | None) -> str:
    from capfilt.errors import ConfigError

    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"-c {path}: cannot be read ({error})") from None


def _lines(facts: dict[str, str]) -> Any:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, fact in facts.items():
        table.add_row(name, fact)
    return table


def _print(result: Any) -> None:
    if isinstance(result, dict):
        print(json.dumps(result, indent=1, ensure_ascii=False))
    else:
        from rich.console import Console

        # In a pipe or a file, lines are not broken: they are for grep.
        Console(width=None if sys.stdout.isatty() else 1000).print(result)


if __name__ == "__main__":
    main()
