"""What a run would take."""

from __future__ import annotations

from rich.console import RenderableType

from capfilt.duration import duration
from capfilt.estimate import Estimate, Share
from capfilt.show.layout import described

WELL_FED = 0.8  # of the time, in which models that need not wait for images compute


def estimate_text(found: Estimate) -> RenderableType:
    """What a run would take and give, and how sure that is."""
    census, probe = found.census, found.probe
    about = "" if census.is_exact else "about "
    source = "_stats.json" if census.has_stats else "counted"
    if not census.is_exact:
        source = f"{census.counted:,} shards: {source}; the others by their size"
    facts = {
        "shards": f"{census.shards:,}, {_size(census.size_bytes)}",
        "images": f"{about}{census.images:,} ({source})",
        "machine": f"{probe.device}, models loaded in {duration(probe.load_s)}",
        "batch": f"{probe.batch_size:,} images fit, {_size(probe.peak_bytes)} of memory at most",
        "speed": f"{probe.images_per_s:,.1f} images/s of one {found.speed.unit}, "
        f"its models busy {probe.busy_share:.0%} of the time",
        "takes": f"{found.hours:,.2f} {found.speed.unit} hours "
        f"({duration(found.hours * 3600)} on one, {duration(found.hours * 450)} on eight)",
    }
    if found.price is not None:
        facts["price"] = f"{found.price:,.2f} at {found.price_per_hour:g} an hour"
    facts["output"] = f"about {_size(found.output_bytes)}"
    facts["images kept"] = _interval(found.kept)
    facts |= {f"{source} texts kept": _interval(share) for source, share in found.texts.items()}
    lines = [
        f"intervals: 95 %, from the first {probe.tally.read:,} images of "
        f"{', '.join(shard.id for shard in probe.shards)}; wider where shards differ"
    ]
    if found.ignores:
        lines.append(
            f"{' and '.join(found.ignores)}: not looked for here, which takes all of INPUT; a run "
            "drops copies before the models, so it takes and keeps less"
        )
    if found.unfinished:
        lines.append(f"left out: {found.unfinished:,} shards that img2dataset has not finished")
    if probe.busy_share < WELL_FED:
        lines.append("the models waited for images: more CPU cores or a nearer INPUT would help")
    return described("input", found.input, facts, lines)


def _interval(share: Share) -> str:
    """A share with its 95 % interval, in percent."""
    if share.low == share.high:
        return f"{share.share:.1%} (of all)"
    return f"{share.share:.1%} ({share.low:.1%} to {share.high:.1%})"


def _size(count: float) -> str:
    """Bytes as people write them."""
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 1000:
            return f"{count:,.1f} {unit}"
    return f"{count / 1000:,.1f} TB"
