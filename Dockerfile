# One image for the service, alone or under KubeRay. EXTRA is cpu or gpu and picks the lock file.
#   docker build --build-arg EXTRA=gpu --tag vllm-chat-backend:0.1.0-gpu .
ARG PYTHON=python:3.12-slim-bookworm

FROM ${PYTHON} AS build
ARG EXTRA=cpu
WORKDIR /app
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY configs/locks/${EXTRA}.txt lock.txt
# torch's CPU build is on PyTorch's own index only. The lock is complete, so pip need not resolve.
RUN if [ "${EXTRA}" = cpu ]; then \
      grep '^torch==' lock.txt > torch.txt \
      && pip install --no-deps --index-url https://download.pytorch.org/whl/cpu -r torch.txt; \
    fi \
    && pip install --no-deps -r lock.txt
COPY pyproject.toml README.md LICENSE ./
COPY serve_app serve_app
COPY cli cli
COPY loadtests loadtests
COPY configs configs
COPY serve_config.yaml ./
# In a container the service listens to the outside; what is published is for compose or Kubernetes to say.
RUN pip install --no-deps --no-build-isolation --editable . \
    && sed 's/host: 127\.0\.0\.1/host: 0.0.0.0/' serve_config.yaml > serve_config.container.yaml \
    && python -m compileall -q serve_app cli loadtests

FROM ${PYTHON}
# bash and wget: KubeRay's probes. g++: Triton and torch compile kernels when a model loads. libnuma1: vLLM on CPUs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash g++ libnuma1 tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home --shell /bin/bash chat \
    && install --directory --owner chat --group chat --mode 0700 /home/chat/.cache /home/chat/.ray \
        /home/chat/.local /home/chat/.local/state
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:${PATH} \
    RAY_SERVE_ENABLE_HA_PROXY=1 \
    RAY_SERVE_THROUGHPUT_OPTIMIZED=1 \
    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve_app.gateway.edge:middlewares \
    RAY_USAGE_STATS_ENABLED=0
WORKDIR /app
USER 1000:1000
EXPOSE 8787
ENTRYPOINT ["tini", "--"]
CMD ["serve", "run", "serve_config.container.yaml"]
