//! A temporary directory with all that a run needs: `toy/` (MSL's layout), `corpus/`, `llm/`,
//! `run.toml`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use itemlm::model::{DecoderConfig, save_llm_dir};
use itemlm::text::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::common::{copy_folder, faults_of_refusal, itemlm};
pub use crate::common::{document, snapshot, succeeded};

pub const ITEMS: usize = 20;
pub const USERS: usize = 40;

/// Name → shape and bytes, of a file of f32.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

pub struct Lab {
    dir: tempfile::TempDir,
    failures: RefCell<Vec<String>>,
}

/// 10 steps in 2 epochs.
const RUN: &str = r#"
seed = 7
[data]
corpus = "corpus"
prompt = "short"
train_samples = 40
[llm]
path = "llm"
lora = { rank = 4, alpha = 8, dropout = 0.05, targets = ["q_proj", "v_proj"] }
[train]
epochs = 2
batch_size = 8
micro_batch_size = 4
learning_rate = 1e-2
warmup_steps = 2
checkpoint_steps = 2
valid_windows = 8
[decode]
beams = 5
"#;

impl Lab {
    /// Makes a directory without anything in it.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), failures: RefCell::default() }
    }

    pub fn new() -> Self {
        let lab = Self::empty();
        write_toy(&lab.path("toy"));
        write_llm(&lab.path("llm"), 3);
        lab.write("run.toml", RUN);
        lab.ok("prepare msl toy --out corpus");
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        fs::write(self.path(name), bytes).unwrap();
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Returns the command `itemlm` in the directory, with the words of `line` as arguments.
    pub fn command(&self, line: &str) -> Command {
        let mut command = itemlm(self.dir.path());
        command.args(line.split_whitespace());
        command
    }

    /// Starts it with nothing shown.
    pub fn spawn(&self, line: &str) -> Child {
        self.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub fn ok(&self, line: &str) -> Output {
        succeeded(line, self.command(line).output().unwrap())
    }

    /// Returns the one JSON document on stdout.
    pub fn json(&self, line: &str) -> Value {
        document(&self.ok(&format!("{line} --json")))
    }

    pub fn assert_refused(&self, line: &str, code: i32, named: &[&str]) {
        self.refuses(&mut self.command(line), line, code, named);
    }

    /// Checks that a command is refused as [`faults_of_refusal`] says, and touches no file. All
    /// wrong refusals of the laboratory are reported together, when it is dropped.
    pub fn refuses(&self, command: &mut Command, what: &str, code: i32, named: &[&str]) {
        let before = snapshot(self.dir.path());
        let output = command.output().unwrap();
        let after = snapshot(self.dir.path());
        let mut wrong = faults_of_refusal(what, &output, code, named);
        let changed: Vec<_> = before.iter().filter(|(p, b)| after.get(*p) != Some(b)).map(|(p, _)| p).collect();
        let added: Vec<_> = after.keys().filter(|p| !before.contains_key(*p)).collect();
        if !changed.is_empty() || !added.is_empty() {
            wrong.push(format!("changed {changed:?}, added {added:?}"));
        }
        if !wrong.is_empty() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            self.failures.borrow_mut().push(format!("itemlm {what}\n  {}\n  stderr: {stderr}", wrong.join("; ")));
        }
    }

    pub fn metrics(&self, run: &str) -> Vec<Value> {
        let text = String::from_utf8(self.read(&format!("{run}/metrics.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn losses(&self, run: &str) -> Vec<f64> {
        self.metrics(run).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    }

    /// Steps with a checkpoint, each of which must be whole; ascending.
    pub fn checkpoints(&self, run: &str) -> Vec<usize> {
        let Ok(entries) = fs::read_dir(self.path(&format!("{run}/checkpoints"))) else { return Vec::new() };
        let mut steps = Vec::new();
        for entry in entries.map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            let Some(step) = name.strip_prefix("step-") else { continue };
            for file in ["optimizer.bin", "state.toml"] {
                assert!(entry.path().join(file).is_file(), "{run}: {name} has no {file}");
            }
            let weights = ["adapter_model.safetensors", "model.safetensors"].map(|f| entry.path().join(f));
            let bytes = weights.iter().find_map(|path| fs::read(path).ok());
            let bytes = bytes.unwrap_or_else(|| panic!("{run}: {name} has no weights"));
            assert!(SafeTensors::deserialize(&bytes).is_ok(), "{run}: {name}'s weights are cut");
            steps.push(step.parse().unwrap());
        }
        steps.sort_unstable();
        steps
    }

    /// Entries of the run's checkpoints that are no checkpoint.
    pub fn leftovers(&self, run: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(&format!("{run}/checkpoints"))).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        names.filter(|name| !name.starts_with("step-")).collect()
    }

    /// Checks that both runs left the same weights, and the same metrics to the last digit, but for
    /// times.
    pub fn same_run(&self, a: &str, b: &str, weights: &str) {
        let timeless = |line: &str| {
            let (before, after) = line.split_once("\"seconds\":").unwrap();
            format!("{before}{}", after.split_once(',').unwrap().1)
        };
        let [x, y] = [a, b].map(|run| String::from_utf8(self.read(&format!("{run}/metrics.jsonl"))).unwrap());
        for (x, y) in x.lines().zip(y.lines()) {
            assert_eq!(timeless(x), timeless(y), "{a} and {b}");
        }
        assert_eq!(x.lines().count(), y.lines().count(), "{a} and {b}");
        assert!(self.read(&format!("{a}/{weights}")) == self.read(&format!("{b}/{weights}")), "{a} and {b}: {weights}");
    }

    /// Copies a directory with all that is in it.
    pub fn copy(&self, from: &str, to: &str) {
        copy_folder(&self.path(from), &self.path(to));
    }

    /// Replaces the first `from` in a text file.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = String::from_utf8(self.read(file)).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        self.write(file, text.replacen(from, to, 1));
    }

    /// Rewrites a safetensors file.
    pub fn edit_tensors(&self, file: &str, edit: impl FnOnce(&mut Tensors)) {
        let bytes = self.read(file);
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Tensors =
            read.tensors().into_iter().map(|(name, t)| (name, (t.shape().to_vec(), t.data().to_vec()))).collect();
        edit(&mut tensors);
        let view = |(shape, data): &'_ (Vec<usize>, Vec<u8>)| (shape.clone(), data.clone());
        let owned: Vec<_> = tensors.iter().map(|(name, t)| (name.clone(), view(t))).collect();
        let views = owned.iter().map(|(n, (s, d))| (n.clone(), TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
        self.write(file, safetensors::serialize(views, None).unwrap());
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let failures = self.failures.borrow();
        if !failures.is_empty() && !std::thread::panicking() {
            panic!("{} refusals are wrong:\n\n{}", failures.len(), failures.join("\n"));
        }
    }
}

/// Returns titles; items 5 and 6 have the same.
pub fn titles() -> Vec<String> {
    let kinds = ["Red Pen", "Blue Pen", "Café \"Noir\" & Co", "Stapler", "A5 Pad, ruled"];
    let title = |item: usize| if item == 6 { 5 } else { item };
    (0..ITEMS).map(|item| format!("{} {}", kinds[title(item) % kinds.len()], title(item))).collect()
}

/// Users with 7 interactions: windows that end with the 3rd to 5th train, the 6th validates, the
/// 7th tests. The last two items are cold: only the first two users' tests end with them.
fn write_toy(dir: &Path) {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut files =
        ["train.csv", "valid.csv", "test.csv"].map(|name| (name, "user_id,item_ids,timestamp\n".to_string()));
    let logs: Vec<Vec<usize>> = (0..USERS)
        .map(|user| {
            let mut log = vec![user % 18];
            while log.len() < 7 {
                log.push((log[log.len() - 1] + rng.random_range(1..4)) % 18);
            }
            if user < 2 {
                log[6] = 18 + user;
            }
            log
        })
        .collect();
    for end in 3..=7usize {
        let (_, text) = &mut files[end.saturating_sub(5)];
        for (user, log) in logs.iter().enumerate() {
            let ids: Vec<usize> = log[end.saturating_sub(5)..end].iter().map(|item| 100 + item).collect();
            *text += &format!("u{user},\"{ids:?}\",{}\n", 1000 * end + user);
        }
    }
    fs::create_dir_all(dir).unwrap();
    for (name, text) in files {
        fs::write(dir.join(name), text).unwrap();
    }
    let names: BTreeMap<String, String> = (100..).map(|id: usize| id.to_string()).zip(titles()).collect();
    fs::write(dir.join("id2name4Rec.json"), serde_json::to_string(&names).unwrap()).unwrap();
}

/// Returns a byte-level BPE that, as Llama 3's, joins a title's opening quote and first letter. So
/// the trie branches at its root and the adaptive temperature has something to adapt to.
fn tokenizer() -> Tokenizer {
    let texts = titles().into_iter().map(|title| format!("History: \"{title}\"\nNext: "));
    let mut document: Value = serde_json::from_str(&Tokenizer::train_bpe(texts, 300).unwrap().to_json()).unwrap();
    document["pre_tokenizer"]["use_regex"] = json!(false);
    for letter in ["R", "B", "C", "S", "A"] {
        let vocabulary = document["model"]["vocab"].as_object_mut().unwrap();
        vocabulary.insert(format!("\"{letter}"), json!(vocabulary.len()));
        document["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["\"", letter]));
    }
    Tokenizer::from_json(&document.to_string(), 0).unwrap()
}

/// Writes a random Llama of two layers.
pub fn write_llm(dir: &Path, seed: u64) {
    write_llm_as(dir, seed, |_| ());
}

/// Writes a random Llama of two layers with other sizes.
pub fn write_llm_as(dir: &Path, seed: u64, change: impl FnOnce(&mut DecoderConfig)) {
    let tokenizer = tokenizer();
    let mut config = DecoderConfig {
        hidden_size: 16,
        intermediate_size: 32,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        head_dim: 8,
        ..DecoderConfig::tiny(tokenizer.vocab_size())
    };
    change(&mut config);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let tensors: Vec<_> = config
        .tensors()
        .map(|(name, shape)| {
            let count = shape.iter().product();
            // Embeddings large enough that logits spread and the adaptive temperature leaves its
            // floor.
            let bound = if name.contains("embed") { 1.5f32 } else { 0.3 };
            let values = match shape.len() {
                1 => vec![1.0; count],
                _ => (0..count).map(|_| rng.random_range(-bound..bound)).collect(),
            };
            (name, shape, values)
        })
        .collect();
    save_llm_dir(dir, &config, tensors.into_iter().map(Ok), &tokenizer).unwrap();
}
