# One image for GPUs and CPUs, installed as README.md says ("Installing").
#   docker build -t capfilt .                                             CUDA: the package index's torch
#   docker build -t capfilt --build-arg TORCH_WHEELS=<folder or index with CPU wheels> .
# Linted, and its files make the wheel (tests/test_dockerfile.py); the image itself was never built.
FROM python:3.11-slim

# KubeRay before 1.6 asks a node with wget whether it is well.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/capfilt
COPY . .
ARG TORCH_WHEELS=
ARG EXTRAS=dedupe,ingest,plot,s3,train
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_WHEELS" ]; then \
      pip install --no-cache-dir torch==2.13.0 --find-links "$TORCH_WHEELS"; \
    fi && \
    pip install --no-cache-dir -c constraints.txt ".[$EXTRAS]"

RUN useradd --create-home --uid 1000 capfilt
USER 1000
WORKDIR /home/capfilt
ENV RAY_USAGE_STATS_ENABLED=0
ENTRYPOINT ["capfilt"]
