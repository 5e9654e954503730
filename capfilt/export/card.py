"""What says of a Hugging Face folder what it is: a dataset card, and Croissant metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from capfilt.record import Source, Verdict
from capfilt.run.manifest import Manifest
from capfilt.tally import Tally

_SIZES = (
    (1e3, "n<1K"),
    (1e4, "1K<n<10K"),
    (1e5, "10K<n<100K"),
    (1e6, "100K<n<1M"),
    (1e7, "1M<n<10M"),
)
_CROISSANT = "http://mlcommons.org/croissant/"
_DESCRIPTION = (
    "Web images with the texts that match them, web texts and synthetic captions, as captioned and "
    "filtered by CapFilt (BLIP, arXiv:2201.12086)."
)


def dataset_card(name: str, manifest: Manifest, tally: Tally) -> str:
    """README.md: counts, models, selection, intended use; the licence is left to its owner."""
    images = tally.samples[Verdict.KEPT]
    size = next((label for most, label in _SIZES if images < most), "n>10M")
    lines = [
        "---",
        "task_categories: [image-to-text]",
        f"size_categories: [{size}]",
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


def croissant(name: str, shards: Mapping[str, tuple[int, str]]) -> str:
    """Croissant 1.0 metadata (JSON-LD).

    Args:
        name: Of the dataset.
        shards: Size in bytes and sha256 of each Parquet file, by path relative to the metadata.
    """
    objects = [
        {
            "@type": "cr:FileObject",
            "@id": path,
            "name": path,
            "contentUrl": path,
            "contentSize": f"{size_bytes} B",
            "encodingFormat": "application/x-parquet",
            "sha256": sha256,
        }
        for path, (size_bytes, sha256) in shards.items()
    ]
    every = {
        "@type": "cr:FileSet",
        "@id": "shards",
        "name": "shards",
        "encodingFormat": "application/x-parquet",
        "includes": "*.parquet",
    }
    fields = {
        "key": "sc:Text",
        "image": "sc:ImageObject",
        "caption": "sc:Text",
        "web_text": "sc:Text",
    }
    tree = {
        "@context": _context(),
        "@type": "sc:Dataset",
        "conformsTo": f"{_CROISSANT}1.0",
        "name": name,
        "description": _DESCRIPTION,
        "version": "1.0.0",
        "distribution": [*objects, every],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "samples",
                "name": "samples",
                "field": [_field(column, kind) for column, kind in fields.items()],
            }
        ],
    }
    return json.dumps(tree, indent=1, ensure_ascii=False) + "\n"


def _field(column: str, kind: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileSet": {"@id": "shards"}, "extract": {"column": column}}
    if column == "image":
        source["transform"] = {"jsonPath": "bytes"}
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
