//! Disks that fill up, and `prepare` killed while it writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use itemlm::data::Corpus;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::lab::{Lab, document, snapshot};

const ADAPTER: &str = "adapter/adapter_model.safetensors";

/// Returns the command with a limit on the length of a file: `blocks` of the shell, of 512 or 1024
/// bytes each. The signal for a longer one is ignored, so a write fails as on a full disk.
fn limit_file_size(command: Command, blocks: usize) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {blocks} && exec \"$@\"")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(command.get_current_dir().unwrap());
    shell
}

#[test]
fn no_room_for_a_file() {
    let lab = Lab::new();
    // An optimiser state of some 100 kB, metrics of a few.
    let train = "train run.toml --ui none --set llm.lora.rank=64 --out";
    lab.ok(&format!("{train} whole"));
    lab.ok(&format!("{train} run --max-steps 3"));
    let before = snapshot(&lab.path("run/checkpoints"));
    let line = format!("{train} run --resume");
    let output = limit_file_size(lab.command(&line), 16).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.contains("run/checkpoints/") && stderr.contains("too large"), "{stderr}");
    assert!(snapshot(&lab.path("run/checkpoints")) == before, "the last checkpoint is not what it was");
    lab.ok(&line);
    lab.same_run("whole", "run", ADAPTER);

    let prepare = "prepare msl toy --out corpus";
    lab.refuses(&mut limit_file_size(lab.command(prepare), 1), prepare, 1, &["too large"]);
    lab.refuses(&mut limit_file_size(lab.command("prepare msl toy --out new"), 1), prepare, 1, &["too large"]);
    let evaluate = "evaluate run --limit 2";
    lab.refuses(&mut limit_file_size(lab.command(evaluate), 1), evaluate, 1, &["run/", "too large"]);
    let merge = "merge run --out merged";
    lab.refuses(&mut limit_file_size(lab.command(merge), 1), merge, 1, &["merged/", "too large"]);
    lab.assert_refused("merge run --out llm", 2, &["llm"]);
}

/// `/dev/full` refuses every write.
#[cfg(target_os = "linux")]
#[test]
fn no_room_for_the_output() {
    let lab = Lab::new();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    for line in ["baseline markov corpus --json", "baseline markov corpus", "--help"] {
        let mut command = lab.command(line);
        let code = command.stdout(full()).output().unwrap().status.code();
        assert_eq!(code, Some(i32::from(line != "--help")), "{line}");
    }
    let line = "prepare msl toy --out corpus --json";
    lab.refuses(lab.command(line).stdout(full()), line, 1, &["stdout"]);
    // A log that cannot be written is no reason to stop.
    let line = "train run.toml --out run --ui plain --json";
    let output = lab.command(line).stderr(full()).output().unwrap();
    assert_eq!((output.status.code(), document(&output)["steps"].as_u64()), (Some(0), Some(10)));
    assert_eq!(lab.command("train absent.toml").stderr(full()).output().unwrap().status.code(), Some(1));
}

/// A small file system of its own, unmounted at the end.
struct MountedDisk(PathBuf);

impl MountedDisk {
    fn new(at: &Path, kib: usize) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let size = format!("size={kib}k");
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at).output();
        mount.is_ok_and(|output| output.status.success()).then(|| Self(at.to_path_buf()))
    }

    /// Leaves no room.
    fn fill(&self) -> PathBuf {
        let path = self.0.join("filler");
        let mut size = 1 << 20;
        while size > 0 {
            let mut bytes = fs::read(&path).unwrap_or_default();
            bytes.resize(bytes.len() + size, 0);
            if fs::write(&path, &bytes).is_err() {
                size /= 2;
            }
        }
        path
    }
}

impl Drop for MountedDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn full_disk() {
    let lab = Lab::new();
    let Some(disk) = MountedDisk::new(&lab.path("disk"), 512) else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let train = "train run.toml --ui none --set llm.lora.rank=32 --out";
    lab.ok(&format!("{train} whole"));
    lab.ok("prepare msl toy --out disk/corpus");
    lab.ok(&format!("{train} disk/run --max-steps 3"));
    let filler = disk.fill();
    let before = snapshot(&lab.path("disk/run/checkpoints"));
    let line = format!("{train} disk/run --resume");
    let output = lab.command(&line).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), stderr.lines().count()), (Some(1), 1), "{stderr}");
    assert!(stderr.starts_with("error: disk/run/") && stderr.contains("No space left"), "{stderr}");
    assert!(snapshot(&lab.path("disk/run/checkpoints")) == before);
    lab.assert_refused("prepare msl toy --out disk/corpus", 1, &["disk", "No space left"]);
    lab.assert_refused("evaluate disk/run --limit 2", 1, &["disk/run/", "No space left"]);
    let output = lab.command(&format!("{train} disk/other")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));

    fs::remove_file(filler).unwrap();
    lab.ok(&line);
    lab.same_run("whole", "disk/run", ADAPTER);
    let train = lab.ok(&format!("{train} disk/other --max-steps 1"));
    assert!(train.status.success());
}

#[test]
fn prepare_is_whole_or_absent() {
    let lab = Lab::new();
    let whole = Corpus::open(&lab.path("corpus")).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let mut killed = 0;
    for round in 0..40 {
        let mut child = lab.spawn("prepare msl toy --out killed");
        sleep(Duration::from_micros(rng.random_range(0..2_000 * (1 + round))));
        if round % 2 == 0 {
            child.kill().unwrap();
        } else {
            let _ = Command::new("kill").args(["-INT", &child.id().to_string()]).output().unwrap();
        }
        killed += usize::from(!child.wait().unwrap().success());
        let out = lab.path("killed");
        if out.exists() {
            assert_eq!(Corpus::open(&out).unwrap(), whole);
            fs::remove_dir_all(out).unwrap();
        }
    }
    assert!(killed > 0, "no kill came in time");
    lab.ok("prepare msl toy --out killed");
    assert_eq!(Corpus::open(&lab.path("killed")).unwrap(), whole);
}
