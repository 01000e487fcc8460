# docker build -t evit_mm .
# For GPUs as well: the registry's torch has CUDA in it. A smaller image for CPUs only, or another CUDA, by
#   --build-arg PIP_EXTRA_INDEX_URL=ADDRESS, an index of PyTorch's wheels as its install page names them
FROM python:3.13-slim
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /evit_mm
COPY . .
RUN PIP_NO_CACHE_DIR=1 make env
ENV PATH=/evit_mm/.venv/bin:$PATH
