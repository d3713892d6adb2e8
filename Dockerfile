# One static binary and nothing else. Build: docker build -t registry.example.com/vulcanized:0.1.0 .
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY src src
COPY tests/static tests/static
RUN tests/static && cp target/static/vulcanized /vulcanized

FROM scratch
COPY --from=build /vulcanized /vulcanized
# Nobody: it needs no file but those that are mounted.
USER 65532:65532
ENTRYPOINT ["/vulcanized"]
