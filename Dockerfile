# krelay as a sidecar: docs/recipes/compose.md, docker-compose.yml.
#
#   docker build -t krelay .
#
# PIP_INDEX_URL selects another package index. To build without one, run this on a machine that has an
# index and the base's version of Python, and put `wheelhouse` beside this file:
#
#   for lock in requirements.lock requirements-build.lock; do
#     pip download --dest wheelhouse --only-binary :all: --require-hashes -r $lock; done
#
# The digest of the base is that of its multi-platform index; BASE selects another base.
# tests/test_supply.py checks that agent/Dockerfile has the same base.
ARG BASE=python:3.13.16-slim-trixie@sha256:70729b46c69b4f1e97c4822c1af3df53a1476cf5ddc6c087c0c10bc3a5678c2f

FROM ${BASE} AS build
ARG PIP_INDEX_URL
# The pattern makes the wheelhouse optional.
COPY requirements.lock requirements-build.lock wheelhous[e] /wheels/
# Install only wheels whose hashes are in the locks, also for the build.
RUN set -eu; \
    export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
    if ls /wheels/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels; fi; \
    # Use the wheelhouse's pip if the base has none.
    for pip in /wheels/pip-*.whl; do if [ -e "$pip" ]; then export PYTHONPATH="$pip"; fi; done; \
    install() { \
      python3 -m venv --without-pip "$1"; \
      python3 -m pip --python "$1/bin/python3" install \
        --require-hashes --only-binary :all: -r "/wheels/$2"; \
    }; \
    install /opt/build requirements-build.lock; \
    install /opt/krelay requirements.lock
COPY pyproject.toml README.md LICENSE /src/
COPY krelay /src/krelay/
COPY agent/*.py /src/agent/
COPY schema /src/schema/
RUN set -eu; \
    cd /src; \
    /opt/build/bin/python3 -m hatchling build --target wheel --directory /dist; \
    /opt/build/bin/python3 -m pip --python /opt/krelay/bin/python3 --no-cache-dir install \
      --no-index --no-deps /dist/*.whl; \
    /opt/build/bin/python3 -m pip --python /opt/krelay/bin/python3 check

FROM ${BASE}
# The image needs no installer. krelay finds its file in WORKDIR and puts its socket into
# XDG_RUNTIME_DIR.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3*/ensurepip \
      /usr/local/lib/python3*/site-packages/pip* \
      /usr/local/lib/python3*/site-packages/setuptools* \
      /usr/local/lib/python3*/site-packages/wheel* \
 && mkdir -m 1777 /run/krelay
COPY --from=build /opt/krelay /opt/krelay
ENV PATH=/opt/krelay/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    XDG_RUNTIME_DIR=/run/krelay TMPDIR=/run/krelay
WORKDIR /etc/krelay
USER 65532:65532
# Healthy: every forward of /etc/krelay/krelay.yaml works.
HEALTHCHECK --interval=10s --timeout=15s --start-period=120s --retries=3 \
  CMD ["krelay", "wait", "--timeout", "5s"]
ENTRYPOINT ["krelay"]
CMD ["up"]
