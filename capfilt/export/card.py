"""What says of a Hugging Face folder what it is: a dataset card, and Croissant metadata."""

from __future__ import annotations

import json
from typing import Any

from capfilt.record import Source, Verdict
from capfilt.run.manifest import Manifest
from capfilt.tally import Tally

_STEPS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
_CROISSANT = "http://mlcommons.org/croissant/"
_COLUMNS = {
    "key": "sc:Text",
    "image": "sc:ImageObject",
    "caption": "sc:Text",
    "web_text": "sc:Text",
    "json": "sc:Text",
}
_CAPTION = {
    "text": "sc:Text",
    "source": "sc:Text",
    "match_prob": "sc:Float",
    "similarity": "sc:Float",
}
_DESCRIPTION = (
    "Web images with the texts that match them, web texts and synthetic captions, as captioned and "
    "filtered by CapFilt (BLIP, arXiv:2201.12086)."
)


def dataset_card(name: str, manifest: Manifest, tally: Tally) -> str:
    """README.md: counts, models, selection, intended use; the licence is left to its owner."""
    images = tally.samples[Verdict.KEPT]
    lines = [
        "---",
        f"pretty_name: {json.dumps(name)}",
        "task_categories: [image-to-text]",
        f"size_categories: [{size_category(images)}]",
        "tags: [image-text, captions, capfilt]",
        "configs:",
        "- config_name: default",
        '  data_files: "data/**/*.parquet"',
        "---",
        "",
        f"# {name}",
        "",
        _DESCRIPTION,
        "",
        "| | read | kept |",
        "| --- | --- | --- |",
        f"| images | {tally.read:,} | {images:,} |",
    ]
    for source in Source:
        judged = tally.judged(source)
        if judged:
            lines.append(f"| {source} texts | {judged:,} | {tally.texts[source, Verdict.KEPT]:,} |")
    lines += ["", "## How it was made", ""]
    for role, model in manifest.models.items():
        lines.append(f"- {role}: `{_code(model['source'])}` (sha256 `{model['sha256']}`)")
    lines += [
        f"- selection: `{_code(json.dumps(manifest.rules()))}`",
        f"- seed {manifest.config['seed']}, capfilt {manifest.versions['capfilt']}, fingerprint "
        f"`{manifest.fingerprint}`",
        "",
        "## Columns",
        "",
        "`image`; `caption`, the first kept text; `captions`, every kept text with its source and "
        "scores (`match_prob` in [0, 1], `similarity` in [-1, 1]); `web_text`, the text the image "
        "came with; `key`; `json`, the original metadata; `extras`.",
        "",
        "## Intended use",
        "",
        "Training and studying models of images and text. Texts and images come from the web and "
        "from a model: they may be wrong, offensive or personal, and a synthetic caption has the "
        "biases of its captioner.",
        "",
        "## Licence",
        "",
        "Not stated: images and web texts belong to their authors. Whoever publishes this dataset "
        "says here under which terms.",
        "",
    ]
    return "\n".join(lines)


def size_category(count: int) -> str:
    """As the Hub calls it."""
    if count < 1000:
        return "n<1K"
    if count >= 10**12:
        return "n>1T"
    step = len(str(count)) - len("1000")
    return f"{_STEPS[step]}<n<{_STEPS[step + 1]}"


def croissant(name: str) -> str:
    """Croissant 1.0 metadata (JSON-LD) of the folder that it lies in."""
    fields = [_field(column, kind) for column, kind in _COLUMNS.items()]
    tree = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": f"{_CROISSANT}1.0",
        "name": name,
        "description": _DESCRIPTION,
        "version": "1.0.0",
        "distribution": [
            {
                "@type": "cr:FileSet",
                "@id": "shards",
                "name": "shards",
                "encodingFormat": "application/x-parquet",
                "includes": "data/*.parquet",  # its readers match folders below as well
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "field": [*fields, _captions()],
            }
        ],
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _captions() -> dict[str, Any]:
    """Every kept text with its scores."""
    parts = []
    for part, kind in _CAPTION.items():
        field = _field("captions", kind, json_path=f"[*].{part}")
        parts.append({**field, "@id": f"samples/captions/{part}", "name": part})
    return {
        "@type": "cr:Field",
        "@id": "samples/captions",
        "name": "captions",
        "repeated": True,
        "subField": parts,
    }


def _field(column: str, kind: str, json_path: str | None = None) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": column}}
    if column == "image":
        json_path = "bytes"
    if json_path is not None:
        source["transform"] = {"jsonPath": json_path}
    return {
        "@type": "cr:Field",
        "@id": f"samples/{column}",
        "name": column,
        "dataType": kind,
        "source": source,
    }


def _context() -> dict[str, Any]:
    """Croissant's own, which its readers expect to the letter."""
    return {
        "@language": "en",
        "@vocab": "https://schema.org/",
        "citeAs": "cr:citeAs",
        "column": "cr:column",
        "conformsTo": "dct:conformsTo",
        "cr": _CROISSANT,
        "rai": f"{_CROISSANT}RAI/",
        "data": {"@id": "cr:data", "@type": "@json"},
        "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
        "dct": "http://purl.org/dc/terms/",
        "equivalentProperty": "cr:equivalentProperty",
        "examples": {"@id": "cr:examples", "@type": "@json"},
        "extract": "cr:extract",
        "field": "cr:field",
        "fileProperty": "cr:fileProperty",
        "fileObject": "cr:fileObject",
        "fileSet": "cr:fileSet",
        "format": "cr:format",
        "includes": "cr:includes",
        "isLiveDataset": "cr:isLiveDataset",
        "jsonPath": "cr:jsonPath",
        "key": "cr:key",
        "md5": "cr:md5",
        "parentField": "cr:parentField",
        "path": "cr:path",
        "recordSet": "cr:recordSet",
        "references": "cr:references",
        "regex": "cr:regex",
        "repeated": "cr:repeated",
        "replace": "cr:replace",
        "samplingRate": "cr:samplingRate",
        "sc": "https://schema.org/",
        "separator": "cr:separator",
        "source": "cr:source",
        "subField": "cr:subField",
        "transform": "cr:transform",
    }


def _code(text: str) -> str:
    """As inline code of Markdown can hold it."""
    return text.replace("`", "'").replace("\n", " ")
