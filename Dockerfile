# docker build -t evit_mm .
# The image also works on GPUs, because PyPI's torch includes CUDA. For a smaller CPU-only image or another CUDA
# version, add an index of PyTorch's wheels (see PyTorch's install page): --build-arg PIP_EXTRA_INDEX_URL=ADDRESS
FROM python:3.13-slim
ARG PIP_EXTRA_INDEX_URL
RUN apt-get update && apt-get install -y --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /evit_mm
COPY . .
# the second command stores compiled modules, which every container would otherwise compile again
RUN PIP_NO_CACHE_DIR=1 make env && .venv/bin/python tools/train.py --help >/dev/null
ENV PATH=/evit_mm/.venv/bin:$PATH
