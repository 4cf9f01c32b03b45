//! Bad input: one line that names it, exit 1 or 2, and every file as it was.

use std::fs;

use itemlm::text::Tokenizer;

use crate::common::fixture;
use crate::lab::{Lab, titles, write_llm};

#[test]
fn usage() {
    let lab = Lab::new();
    for (line, named) in [
        ("", "no command"),
        ("tune run.toml", "tune"),
        ("--nope", "--nope"),
        ("train", "<RUN>"),
        ("train run.toml --nope", "--nope"),
        ("train run.toml --max-steps -1", "-1"),
        ("train run.toml --ui tui", "terminal"),
        ("evaluate corpus --split tset", "tset"),
        ("evaluate corpus --limit 0", "--limit"),
        ("evaluate corpus --beams 0", "--beams"),
        ("evaluate corpus --scoring best", "best"),
        ("recommend corpus", "run.toml"),
        ("recommend corpus --history x -k 0", "-k"),
        ("prepare netflix toy --out other", "netflix"),
        ("prepare msl toy", "--out"),
        ("baseline best corpus", "best"),
        ("baseline markov corpus --limit 0", "--limit"),
        ("score --llm llm", "--catalogue"),
        ("train run.toml --backend wgpu:0,0", "named twice"),
        ("train run.toml --backend cpu:0,1", "it must be cpu"),
        ("evaluate corpus --backend cuda:0,", "it must be cpu"),
        ("inspect", "<CORPUS>"),
        ("inspect corpus --examples -1", "-1"),
        ("inspect corpus --prompt nowhere.txt", "nowhere.txt"),
    ] {
        lab.assert_refused(line, 2, &[named]);
    }
    #[cfg(not(feature = "cuda"))]
    for line in
        ["train run.toml --out run", "evaluate corpus", "recommend corpus --history x", "baseline markov corpus"]
    {
        lab.assert_refused(&format!("{line} --backend cuda"), 2, &["cuda", "--features cuda"]);
    }
    #[cfg(not(feature = "cuda"))]
    for line in ["train run.toml --out run", "evaluate corpus"] {
        lab.assert_refused(&format!("{line} --backend cuda:0,1"), 2, &["cuda", "--features cuda"]);
    }
}

#[test]
fn raw_data() {
    let lab = Lab::new();
    let bad = |file: &str, from: &str, to: &str, named: &[&str]| {
        let original = lab.read(&format!("toy/{file}"));
        lab.edit(&format!("toy/{file}"), from, to);
        // An old corpus stays, and nothing of a new one appears.
        lab.assert_refused("prepare msl toy --out corpus", 1, named);
        lab.assert_refused("prepare msl toy --out new --json", 1, named);
        lab.write(&format!("toy/{file}"), original);
    };
    bad("train.csv", "]", "", &["train.csv", "line 2", "item_ids"]);
    bad("test.csv", ", ", ",, ", &["test.csv", "line 2", "item_ids"]);
    bad("valid.csv", "[1", "[999, 1", &["valid.csv", "line 2", "999"]);
    bad("train.csv", ",3000", ",soon", &["train.csv", "line 2", "soon"]);
    bad("train.csv", "u0,", "u0", &["train.csv", "line 2"]);
    bad("train.csv", "item_ids", "items", &["train.csv", "item_ids"]);
    bad("id2name4Rec.json", "\"105\"", "\"005\"", &[".csv", "105", "title"]);
    bad("id2name4Rec.json", "}", "", &["id2name4Rec.json"]);

    for (file, bytes, named) in [
        ("id2name4Rec.json", &b"{}"[..], "empty"),
        ("id2name4Rec.json", b"[]", "object"),
        ("train.csv", b"user_id,item_ids,timestamp\n", "no window"),
        ("train.csv", b"", "train.csv"),
        ("test.csv", b"user_id,item_ids,timestamp\nu,\"\xff\",1\n", "line 2"),
        ("test.csv", b"PK\x03\x04\0\0\0\0", "test.csv"),
    ] {
        let original = lab.read(&format!("toy/{file}"));
        lab.write(&format!("toy/{file}"), bytes);
        lab.assert_refused("prepare msl toy --out corpus", 1, &[file, named]);
        lab.write(&format!("toy/{file}"), original);
    }
    lab.assert_refused("prepare msl nowhere --out new", 1, &["nowhere"]);
    fs::remove_file(lab.path("toy/test.csv")).unwrap();
    lab.assert_refused("prepare msl toy --out corpus", 1, &["test.csv"]);
    lab.copy("llm", "thesis");
    lab.assert_refused("prepare msl toy --out thesis", 2, &["thesis"]);
    lab.assert_refused("prepare msl toy --out run.toml", 2, &["run.toml"]);
}

#[test]
fn run_file() {
    let lab = Lab::new();
    for (set, named) in [
        ("train.epoch=1", "epoch"),
        ("trian.epochs=1", "trian"),
        ("train.epochs", "train.epochs"),
        ("train.epochs=many", "many"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.learning_rate=-1", "train.learning_rate"),
        ("train.learning_rate=nan", "train.learning_rate"),
        ("loss.kind=mse", "mse"),
        ("loss.temperature=0", "loss.temperature"),
        ("llm.lora.rank=0", "rank"),
        ("llm.lora.dropout=1", "dropout"),
        ("llm.lora.targets=[\"z_proj\"]", "z_proj"),
        ("llm.tune=frozen", "frozen"),
        ("decode.beams=0", "decode.beams"),
        ("prior.ranker=best", "best"),
        ("prior.weight=1", "ranker"),
        ("data.prompt=nowhere.txt", "nowhere.txt"),
        ("=1", "=1"),
    ] {
        lab.assert_refused(&format!("train run.toml --out run --set {set}"), 2, &[named]);
    }
    for (from, to, named) in [
        ("epochs = 2", "epochs = 2\nbatchsize = 8", "batchsize"),
        ("epochs = 2", "epochs = \"two\"", "two"),
        ("epochs = 2", "epochs = = 2", "line"),
        ("[llm]", "[llm", "line"),
        ("path = \"llm\"", "", "path"),
    ] {
        lab.copy("corpus", "unused");
        let original = lab.read("run.toml");
        lab.edit("run.toml", from, to);
        lab.assert_refused("train run.toml --out run", 2, &["run.toml", named]);
        lab.write("run.toml", original);
    }
    lab.assert_refused("train absent.toml", 1, &["absent.toml"]);
    lab.assert_refused("train corpus", 1, &["corpus"]);
    lab.write("binary.toml", [0xff, 0xfe, 0x00]);
    lab.assert_refused("train binary.toml", 1, &["binary.toml"]);
    lab.assert_refused("train run.toml --out run --set llm.path=nowhere", 1, &["nowhere"]);
    lab.assert_refused("inspect corpus --llm nowhere", 1, &["nowhere"]);
    lab.assert_refused("train run.toml --out run --set data.corpus=nowhere", 1, &["nowhere"]);
    lab.assert_refused("train run.toml --out run --set llm.adapter=nowhere", 1, &["nowhere"]);
}

#[test]
fn model_files() {
    let lab = Lab::new();
    let refused = |path: &str, named: &[&str]| {
        lab.assert_refused(&format!("train run.toml --out run --set llm.path={path}"), 1, named);
    };
    let tiny = fixture("gguf/tiny.gguf");
    let gguf = fs::read(&tiny).unwrap();
    lab.write("titles.txt", "A\nB");
    lab.write("input.jsonl", "{\"prompt\": \"the\", \"items\": [\"B\"]}");
    lab.ok(&format!("score --llm {} --catalogue titles.txt --input input.jsonl", tiny.display()));
    for length in [0, 3, 4, 10, 24, 100, 1000, gguf.len() / 2, gguf.len() - 1] {
        lab.write("cut.gguf", &gguf[..length]);
        refused("cut.gguf", &["cut.gguf"]);
    }
    let mut lying = gguf.clone();
    lying[8..16].fill(0xff);
    lab.write("lying.gguf", &lying);
    refused("lying.gguf", &["lying.gguf"]);

    let tensors = lab.read("llm/model.safetensors");
    let header = u64::from_le_bytes(tensors[..8].try_into().unwrap()) as usize;
    let json = String::from_utf8(tensors[8..8 + header].to_vec()).unwrap();
    let with_header = |json: &str| {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(&tensors[8 + header..]);
        bytes
    };
    let huge: Vec<u8> = u64::MAX.to_le_bytes().into_iter().chain(tensors[8..].iter().copied()).collect();
    let offset = json.find("data_offsets\":[").unwrap() + "data_offsets\":[".len();
    for bytes in [
        huge,
        with_header(&json.replacen("\"shape\":[", "\"shape\":[9999999999999,", 1)),
        with_header(&format!("{}9999999{}", &json[..offset], &json[offset..])),
        with_header(&json.replacen("F32", "F64", 1)),
        with_header("[]"),
        tensors[..tensors.len() - 4].to_vec(),
        tensors[..100].to_vec(),
        Vec::new(),
    ] {
        lab.copy("llm", "bad");
        lab.write("bad/model.safetensors", bytes);
        refused("bad", &["bad/model.safetensors"]);
    }

    let norm = "model.layers.1.input_layernorm.weight";
    lab.copy("llm", "bad");
    lab.edit_tensors("bad/model.safetensors", |t| t.get_mut(norm).unwrap().0 = vec![4, 4]);
    refused("bad", &["bad/model.safetensors", norm, "[4, 4]", "[16]"]);
    lab.edit_tensors("bad/model.safetensors", |t| drop(t.remove(norm)));
    refused("bad", &["bad", norm]);
    lab.copy("llm", "bad");
    lab.edit_tensors("bad/model.safetensors", |t| drop(t.insert("model.bias".into(), (vec![1], vec![0; 4]))));
    refused("bad", &["bad/model.safetensors", "model.bias"]);

    for (from, to, named) in [
        ("\"llama\"", "\"qwen9\"", "qwen9"),
        ("\"llama\"", "\"qwen2\"", "self_attn.q_proj.bias"),
        ("\"llama\"", "null", "model_type"),
        ("\"hidden_size\": 16", "\"hidden_size\": 0", "hidden_size"),
        ("\"hidden_size\": 16", "\"hidden_size\": 99999999999", "hidden_size"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "model.layers.1"),
        ("\"attention_bias\": false", "\"attention_bias\": true", "self_attn.q_proj.bias"),
        ("{", "", "config.json"),
    ] {
        lab.copy("llm", "bad");
        lab.edit("bad/config.json", from, to);
        refused("bad", &["bad", named]);
    }

    lab.copy("llm", "bad");
    let words = (0..99).map(|n| format!("word{n}"));
    lab.write("bad/tokenizer.json", Tokenizer::train_bpe(titles().into_iter().chain(words), 600).unwrap().to_json());
    refused("bad", &["bad", "tokenizer does not fit the model"]);
    lab.write("bad/tokenizer.json", "{\"model\": 3}");
    refused("bad", &["bad/tokenizer.json"]);
    lab.copy("llm", "bad");
    lab.write("bad/tokenizer_config.json", "{\"eos_token\": \"</s>\"}");
    refused("bad", &["bad/tokenizer_config.json", "</s>"]);
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        lab.copy("llm", "bad");
        fs::remove_file(lab.path("bad").join(file)).unwrap();
        refused("bad", &["bad", file]);
    }
}

#[test]
fn corpus_files() {
    let lab = Lab::new();
    for file in ["corpus.toml", "items.parquet", "interactions.parquet", "windows-test.parquet"] {
        let original = lab.read(&format!("corpus/{file}"));
        for bytes in [&original[..original.len() / 2], b"", b"no corpus"] {
            lab.write(&format!("corpus/{file}"), bytes);
            lab.assert_refused("train run.toml --out run", 1, &["corpus", file]);
            lab.assert_refused("baseline markov corpus", 1, &["corpus", file]);
            lab.assert_refused("inspect corpus --json", 1, &["corpus", file]);
        }
        lab.write(&format!("corpus/{file}"), original);
    }
    lab.assert_refused("baseline markov llm --json", 1, &["llm/corpus.toml"]);

    lab.write("toy/test.csv", "user_id,item_ids,timestamp\n");
    lab.ok("prepare msl toy --out corpus");
    lab.ok("train run.toml --out run --max-steps 1");
    lab.assert_refused("baseline markov corpus --json", 1, &["corpus", "test split"]);
    lab.assert_refused("evaluate run --json", 1, &["corpus", "test split"]);
}

/// Items of one title leave the trie without a branching: the loss has nothing to tell apart.
#[test]
fn a_catalogue_of_one_title_is_not_trained() {
    let lab = Lab::new();
    let log: String = (0..30)
        .flat_map(|user| (0..6).map(move |step| (user, step)))
        .map(|(user, step)| format!("u{user},i{},{},Pen\n", (user + step) % 6, 1_600_000_000 + step * 1000 + user))
        .collect();
    lab.write("log.csv", format!("user,item,time,title\n{log}"));
    lab.ok("prepare table log.csv --user user --item item --time time --title title --out alike");
    lab.assert_refused("train run.toml --out run --set data.corpus=alike", 1, &["alike", "same title"]);
}

#[test]
fn run_directories() {
    let lab = Lab::new();
    let train = "train run.toml --out run";
    lab.ok(&format!("{train} --max-steps 4"));
    lab.assert_refused(train, 2, &["run", "--resume"]);
    lab.assert_refused("train run.toml --out llm", 2, &["llm"]);
    lab.assert_refused("train run.toml --out run.toml", 2, &["run.toml"]);
    lab.assert_refused("train run.toml --out nowhere --resume", 2, &["nowhere", "run directory"]);
    lab.assert_refused("train run.toml --out corpus --resume", 2, &["corpus", "run directory"]);
    for command in ["evaluate corpus", "evaluate nowhere", "recommend llm --history x"] {
        lab.assert_refused(command, 2, &["run directory"]);
    }
    let resume = format!("{train} --resume");
    lab.assert_refused(&format!("{resume} --set train.learning_rate=0.5"), 2, &["run", "learning_rate = 0.5"]);
    lab.assert_refused(&format!("{resume} --set data.train_samples=39"), 2, &["run", "train_samples = 39"]);
    lab.write("titles.txt", titles().join("\n"));
    lab.write("input.jsonl", "{\"prompt\": \"x\", \"items\": [\"Red Pen 0\"]}\n");
    let score = "score --catalogue titles.txt --input input.jsonl --adapter run --llm llm";
    lab.ok(score);
    let using = [resume.as_str(), "evaluate run", "recommend run --history x"];

    lab.copy("llm", "llm.was");
    write_llm(&lab.path("llm"), 4);
    using.iter().chain([&score]).for_each(|line| lab.assert_refused(line, 1, &["run", "another model", "llm"]));
    lab.copy("llm.was", "llm");
    lab.copy("corpus", "corpus.was");
    lab.edit("toy/id2name4Rec.json", "Red Pen 0", "Pink Pen 0");
    lab.ok("prepare msl toy --out corpus");
    using.iter().for_each(|line| lab.assert_refused(line, 1, &["run", "another corpus", "corpus"]));
    lab.copy("corpus.was", "corpus");

    let checkpoint = "run/checkpoints/step-00000004";
    for file in ["optimizer.bin", "state.toml", "adapter_model.safetensors"] {
        let path = format!("{checkpoint}/{file}");
        let original = lab.read(&path);
        lab.write(&path, &original[..original.len() / 2]);
        lab.assert_refused(&resume, 1, &[&path]);
        lab.write(&path, b"");
        lab.assert_refused(&resume, 1, &[&path]);
        if file != "optimizer.bin" {
            lab.assert_refused("evaluate run", 1, &[&path]);
        } else {
            let mut flipped = original.clone();
            flipped[original.len() / 2] ^= 1;
            lab.write(&path, flipped);
            lab.assert_refused(&resume, 1, &[&path, "delete"]);
        }
        lab.write(&path, original);
    }
    // What the last message says to do works.
    fs::remove_dir_all(lab.path(checkpoint)).unwrap();
    lab.ok(&resume);
    lab.ok("train run.toml --out whole");
    lab.same_run("whole", "run", "adapter/adapter_model.safetensors");

    for file in ["run.toml", "identity.json"] {
        let path = format!("run/{file}");
        let original = lab.read(&path);
        lab.write(&path, "?");
        let code = if file == "run.toml" { 2 } else { 1 };
        lab.assert_refused("evaluate run", code, &[&path]);
        lab.write(&path, original);
    }
    fs::remove_dir_all(lab.path("run/checkpoints")).unwrap();
    fs::create_dir(lab.path("run/checkpoints")).unwrap();
    lab.assert_refused("evaluate run", 1, &["run", "no checkpoint"]);
    // Killed before the run file was written: not a run yet, and no obstacle to one.
    fs::create_dir(lab.path("early")).unwrap();
    lab.write("early/identity.json", lab.read("run/identity.json"));
    lab.ok("train run.toml --out early --max-steps 1");
}

#[test]
fn score_input() {
    let lab = Lab::new();
    let line = "score --llm llm --catalogue titles.txt --input input.jsonl";
    lab.assert_refused(line, 1, &["titles.txt"]);
    lab.write("titles.txt", "");
    lab.write("input.jsonl", "");
    lab.assert_refused(line, 1, &["titles.txt", "empty"]);
    lab.write("titles.txt", "A\n\nB\n");
    lab.assert_refused(line, 1, &["titles.txt:2", "empty"]);
    lab.write("titles.txt", "A\nB\n");
    assert!(lab.ok(line).stdout.is_empty());
    for (bytes, named) in [
        (&b"{\"prompt\": \"x\", \"items\": [\"C\"]}"[..], "titles.txt"),
        (b"{\"prompt\": \"\", \"items\": [\"A\"]}", "prompt"),
        (b"{\"prompt\": \"x\", \"item\": [\"A\"]}", "item"),
        (b"{\"prompt\": \"x\"", "EOF"),
        (b"\xff", "UTF-8"),
    ] {
        lab.write("input.jsonl", bytes);
        lab.assert_refused(line, 1, &["input.jsonl:1", named]);
    }
    fs::remove_file(lab.path("input.jsonl")).unwrap();
    lab.assert_refused(line, 1, &["input.jsonl"]);
}
