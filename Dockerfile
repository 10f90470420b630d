# kd in a container, from the exact versions of the lock.
#
#   docker build -t kd --build-arg TORCH_INDEX=URL .   URL: PyTorch's index of CPU builds, or that of a CUDA version
#   docker build -t kd .                               torch from the usual index, with its CUDA libraries
#   docker run --rm -v "$PWD:/work" kd demo
#   docker run --rm --gpus all -v "$PWD:/work" kd distill --teacher ./T --student ./S --data train.jsonl -o runs/a
FROM python:3.11-slim

ARG TORCH_INDEX=
# Extras to install: lora,track,quant,slurm,ray,bench
ARG EXTRAS=lora,track

WORKDIR /opt/kd
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN PIP_EXTRA_INDEX_URL="${TORCH_INDEX}" pip install --no-cache-dir --constraint src/kdcli/constraints.txt \
    --build-constraint src/kdcli/constraints.txt ".[${EXTRAS}]"

WORKDIR /work
ENV HF_HUB_DISABLE_TELEMETRY=1
ENTRYPOINT ["kd"]
CMD ["--help"]
