# A station for a Jetson with JetPack 6 (Python 3.10, CUDA and TensorRT from the base image). UNTESTED: no Jetson and no
# Docker daemon where this was written; tests/edge/test_deploy.py checks what can be checked without them.
#
#   docker build -f edge/deploy/jetson.Dockerfile -t flawline-jetson .
#   docker run --runtime nvidia --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --pids-limit 256 \
#     -v /etc/flawline:/etc/flawline:ro -v flawline-state:/var/lib/flawline --env-file /etc/flawline/secrets.env flawline-jetson

FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0 AS build
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++ python3-dev python3-pip python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m pip install --no-cache-dir uv==0.13.8
WORKDIR /source
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY inspect/flawline_inspect inspect/flawline_inspect
COPY engines/flawline_engines engines/flawline_engines
COPY train/flawline_train train/flawline_train
COPY edge/flawline_edge edge/flawline_edge
# The system's packages stay visible: tensorrt is one of them. pycuda is compiled here, against the image's CUDA.
ENV PATH=/usr/local/cuda/bin:$PATH CUDA_ROOT=/usr/local/cuda
RUN uv export --frozen --extra tensorrt --no-emit-project --output-file /tmp/locked.txt \
 && uv build --wheel --python /usr/bin/python3 --out-dir /tmp/wheel \
 && uv venv --python /usr/bin/python3 --system-site-packages /opt/flawline \
 && uv pip install --python /opt/flawline --require-hashes --requirement /tmp/locked.txt \
 && uv pip install --python /opt/flawline --no-deps /tmp/wheel/*.whl

FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
RUN groupadd --system --gid 10001 flawline \
 && useradd --system --uid 10001 --gid 10001 --groups video --no-create-home --shell /usr/sbin/nologin flawline \
 && install -d -o flawline -g flawline -m 0750 /var/lib/flawline
COPY --from=build /opt/flawline /opt/flawline
ENV PATH=/opt/flawline/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /var/lib/flawline
VOLUME ["/var/lib/flawline"]
STOPSIGNAL SIGTERM
# Compiling for the GPU takes minutes, but the station serves meanwhile: see docs/edge-gpu.md.
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=3 \
  CMD ["flawline", "status", "--config", "/etc/flawline/config.yaml"]
ENTRYPOINT ["flawline"]
CMD ["run", "--config", "/etc/flawline/config.yaml", "--log", "json"]
