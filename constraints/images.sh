#!/usr/bin/env bash
# Pin the images in Dockerfile, compose.yaml and deploy/ by digest: the one that each tag has in its registry now, for all platforms.
# Needs skopeo. Arguments go to `skopeo inspect`, such as --tls-verify=false for a registry of your own.
set -euo pipefail
cd "$(dirname "$0")/.."
for file in Dockerfile compose.yaml deploy/kubernetes/*.yaml; do
  # an image has a tag; a stage of the Dockerfile has none
  for image in $(sed -nE 's/^(FROM|[[:space:]]+image:) ([^[:space:]]+:[^[:space:]]+).*/\2/p' "$file"); do
    tag=${image%@*}
    digest=$(skopeo inspect --raw "$@" "docker://$tag" | sha256sum | cut -d' ' -f1)
    sed -i "s|$image|$tag@sha256:$digest|" "$file"
    echo "$file: $tag@sha256:$digest"
  done
done
