# For CPUs:  docker build -t polyvec .
# For CUDA:  docker build -t polyvec-cuda --build-arg EXTRAS=server,torch .
# To run it: docker run --read-only --tmpfs /tmp -p 8080:8080 polyvec
FROM python:3.12-slim AS build
ARG EXTRAS=server
COPY . /source
RUN python -m venv /opt/polyvec && /opt/polyvec/bin/pip install --no-cache-dir "/source[${EXTRAS}]"

FROM python:3.12-slim
COPY --from=build /opt/polyvec /opt/polyvec
RUN useradd --uid 10001 --no-create-home polyvec
USER 10001
ENV PATH=/opt/polyvec/bin:$PATH PYTHONDONTWRITEBYTECODE=1
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD \
    ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/health')"]
ENTRYPOINT ["polyvec", "serve", "--host", "0.0.0.0"]
