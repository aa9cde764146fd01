# The binary is static, so the image holds nothing besides it but the certificates of the public authorities.
FROM golang:1.26-alpine AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=""
ARG COMMIT=""
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
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
VOLUME /var/lib/zulip-nats
ENTRYPOINT ["/usr/local/bin/zulip-nats"]
CMD ["run"]
