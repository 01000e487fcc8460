# docker build -t evit_mm .                              for CPUs
# docker build -t evit_mm --build-arg TORCH=cu130 .      for GPUs: the name of an index of PyTorch's
FROM python:3.13-slim
ARG TORCH=cpu
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /evit_mm
COPY . .
RUN PIP_NO_CACHE_DIR=1 PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/$TORCH make env
ENV PATH=/evit_mm/.venv/bin:$PATH
