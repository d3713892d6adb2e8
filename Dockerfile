# A single static binary. Build: docker build -t registry.example.com/vulcanized:0.1.0 .
# The last stage copies the binary from the context `build`: the stage below, or a folder that contains one:
# buildah build --target image --build-context build=target/static .
FROM rust:1.95.0-slim-bookworm AS build
RUN apt-get update && apt-get install -y --no-install-recommends protobuf-compiler
WORKDIR /src
COPY Cargo.toml Cargo.lock build.rs ./
COPY .cargo .cargo
COPY src src
# Required by the manifest, but not built.
COPY benches benches
COPY tests/static tests/static
# The commit for `--version -v`: the image has no repository.
ARG SOURCE_COMMIT
RUN tests/static && cp target/static/vulcanized /vulcanized

FROM scratch AS image
COPY --from=build /vulcanized /vulcanized
# An unprivileged user: only mounted files are read.
USER 65532:65532
ENTRYPOINT ["/vulcanized"]
