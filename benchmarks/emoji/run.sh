#!/bin/sh
# Trains the checkpoint that travels with the demo, puts it where the demo finds it, and measures it
# on 1,000 pictures that no choice was made with. Hours, on a CPU.
#     benchmarks/emoji/run.sh FOLDER
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python "$here/make_world.py" "$1"
cd "$1"
capfilt train blip_pretrain -c "$here/pretrain.yaml" --out pretrained
capfilt train blip_finetune_captioner -c "$here/captioner_pairs.yaml" --out captioner_pairs
capfilt train blip_finetune_captioner -c "$here/captioner.yaml" --out finetuned_captioner
capfilt train blip_finetune_captioner -c "$here/captioner_counts.yaml" --out captioner_counts
python "$here/share.py" captioner_pairs/captioner pretrained/filter shared
capfilt train blip_finetune_filter -c "$here/filter_pairs.yaml" --out filter_pairs
capfilt train blip_finetune_filter -c "$here/filter.yaml" --out finetuned_filter
capfilt train blip_finetune_filter -c "$here/filter_counts.yaml" --out filter_counts
capfilt train blip_finetune_filter -c "$here/filter_details.yaml" --out filter_details
python "$here/bundle.py" captioner_counts/captioner filter_details/filter \
    "$here/../../capfilt/demo/checkpoint"
# Fails where the new checkpoint is not as good as it should be.
cd "$here/../.."
python -m pytest -m slow tests/demo/test_checkpoint.py
