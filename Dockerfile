# The binary is static, so the image holds nothing besides it but the certificates of the public authorities.
FROM golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=""
ARG COMMIT=""
# The tag leaves out what writes manuals in Markdown, and is never called. Releases are built alike (release/build.go).
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags urfave_cli_no_docs \
      -ldflags "-s -w -X zulip-nats/cli.buildVersion=${VERSION} -X zulip-nats/cli.buildCommit=${COMMIT}" \
      -o /out/zulip-nats . \
 && mkdir -p /out/state /out/tmp

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/zulip-nats /usr/local/bin/zulip-nats
# Only the embedded NATS server writes to disk: below /var/lib/zulip-nats, or in /tmp for the demo.
COPY --from=build --chown=65532:65532 /out/state /var/lib/zulip-nats
COPY --from=build --chown=65532:65532 /out/tmp /tmp
USER 65532:65532
ENV ZULIP_NATS_STATE_DIR=/var/lib/zulip-nats
# Health, status and metrics, without a password; with an empty variable, nothing is served, and --no-healthcheck is due.
ENV ZULIP_NATS_HTTP=:8080
EXPOSE 8080
VOLUME /var/lib/zulip-nats
# Whether the loops turn: NATS or Zulip away is no reason to start it again.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["/usr/local/bin/zulip-nats", "health"]
ENTRYPOINT ["/usr/local/bin/zulip-nats"]
CMD ["run"]
# What the image is. VERSION and COMMIT are those of the first stage, CREATED is the time of the commit; see
# docker-compose.yml. A label stays empty where they are not given.
ARG VERSION=""
ARG COMMIT=""
ARG CREATED=""
LABEL org.opencontainers.image.title="zulip-nats" \
      org.opencontainers.image.description="Every event of a Zulip account in NATS JetStream, once and in order" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${CREATED}"
