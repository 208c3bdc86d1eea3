# krelay as a sidecar: docs/running.md, docker-compose.yml.
#
#   docker build -t krelay .
#
# Without a package index (PIP_INDEX_URL names another one than pip's own): put the wheels that
#
#   pip wheel --wheel-dir wheelhouse -c requirements.lock . pip hatchling
#
# makes, on a machine that has one, beside this file.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL
# A folder that may be missing, beside a file that is not: the wheelhouse is a matter of choice.
COPY requirements.lock wheelhous[e] /wheels/
COPY pyproject.toml README.md LICENSE /src/
COPY krelay /src/krelay/
COPY agent/*.py /src/agent/
COPY schema /src/schema/
RUN set -eu; \
    export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore; \
    if ls /wheels/*.whl >/dev/null 2>&1; then export PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels; fi; \
    # The wheelhouse's own pip, for a base without one.
    for pip in /wheels/pip-*.whl; do if [ -e "$pip" ]; then export PYTHONPATH="$pip"; fi; done; \
    python3 -m venv --without-pip /opt/krelay; \
    python3 -m pip --python /opt/krelay/bin/python3 install -c /wheels/requirements.lock /src

FROM ${BASE}
# What installs and builds has no work here. `krelay` finds its file, and its socket, by these.
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
