# One static binary and nothing else. Build: docker build -t registry.example.com/vulcanized:0.1.0 .
# The last stage takes the binary from the context `build`, which is the stage below, or a folder that has one:
# buildah build --target image --build-context build=target/static .
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY src src
# The manifest names them; nothing of them is built.
COPY benches benches
COPY tests/static tests/static
# The commit for `--version -v`: there is no repository in here.
ARG SOURCE_COMMIT
RUN tests/static && cp target/static/vulcanized /vulcanized

FROM scratch AS image
COPY --from=build /vulcanized /vulcanized
# An unprivileged user: it needs no file but those that are mounted.
USER 65532:65532
ENTRYPOINT ["/vulcanized"]
