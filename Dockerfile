# syntax=docker/dockerfile:1
# The program in an image: `docker build .` for the CPU, `--target vulkan` and `--target cuda` for a GPU. docs/guide/install.md says how they are run;
# `scripts/check-dockerfile` lints this file.

FROM rust:1.95-slim-bookworm AS source
WORKDIR /src
COPY . .
ENV CARGO_TARGET_DIR=/target

FROM source AS build-cpu
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,id=target-cpu,target=/target \
    cargo build --locked --profile dist --bin visionprefer && install -D /target/dist/visionprefer /out/visionprefer

FROM source AS build-vulkan
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,id=target-vulkan,target=/target \
    cargo build --locked --profile dist --bin visionprefer --features vulkan && install -D /target/dist/visionprefer /out/visionprefer

FROM source AS build-cuda
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,id=target-cuda,target=/target \
    cargo build --locked --profile dist --bin visionprefer --features cuda && install -D /target/dist/visionprefer /out/visionprefer

# Certificates are for models of the hub. /work is where a folder of the host is mounted, and /cache for what can be made again; anybody may write
# there, so that `--user` can be whoever owns the mounted folder.
FROM debian:bookworm-slim AS runtime
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home visionprefer && install -d -m 1777 /work /cache
COPY packaging/data/share /usr/local/share
COPY LICENSE-APACHE LICENSE-MIT NOTICE /usr/local/share/doc/visionprefer/
ENV XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
WORKDIR /work
ENTRYPOINT ["visionprefer"]
CMD ["--help"]

# The loader, and Mesa's drivers: AMD's, Intel's, and the software driver. NVIDIA's comes from the host, by the NVIDIA container toolkit.
FROM runtime AS vulkan
RUN apt-get update && apt-get install -y --no-install-recommends libvulkan1 mesa-vulkan-drivers && rm -rf /var/lib/apt/lists/*
COPY --from=build-vulkan /out/visionprefer /usr/local/bin/visionprefer
ENV VP_DEVICE=vulkan NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,graphics,utility
USER 10001:10001

# NVRTC, which compiles kernels when they are first used, and the headers that they include. The driver comes from the host.
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates cuda-nvrtc-13-0 cuda-cudart-dev-13-0 cuda-cccl-13-0 \
    && rm -rf /var/lib/apt/lists/* && useradd --uid 10001 --create-home visionprefer && install -d -m 1777 /work /cache
COPY packaging/data/share /usr/local/share
COPY LICENSE-APACHE LICENSE-MIT NOTICE /usr/local/share/doc/visionprefer/
COPY --from=build-cuda /out/visionprefer /usr/local/bin/visionprefer
ENV VP_DEVICE=cuda CUDA_PATH=/usr/local/cuda XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["visionprefer"]
CMD ["--help"]

# The last target is the one that is built if none is named.
FROM runtime AS cpu
COPY --from=build-cpu /out/visionprefer /usr/local/bin/visionprefer
USER 10001:10001
