//! Child processes of this program: what happens to one of them, happens to it alone.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use burn::train::Interrupter;

use crate::{Context, Result};

/// Time between two looks at a child.
const POLL: Duration = Duration::from_millis(20);
/// Looks at a child between two calls of a watcher.
const WATCH_EVERY: u32 = 25;
/// Bytes at the end of a log in which the reason of a failure is looked for.
const TAIL: u64 = 1 << 16;

/// Arguments of this program.
#[derive(Debug, Clone)]
pub(super) struct Arguments(Vec<String>);

impl Arguments {
    /// Begins with a command and its values.
    pub fn new(command: &str, values: &[&str]) -> Self {
        Self([command].iter().chain(values).map(|word| word.to_string()).collect())
    }

    /// Adds an option.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        // With the value in the same word, for it may begin with a dash.
        self.0.push(format!("--{name}={value}"));
        self
    }

    /// Adds an option without a value.
    pub fn flag(mut self, name: &str) -> Self {
        self.0.push(format!("--{name}"));
        self
    }

    /// Adds several options.
    pub fn options(self, options: &[(&str, String)]) -> Self {
        options.iter().fold(self, |arguments, (name, value)| arguments.option(name, value))
    }
}

/// The end of a child process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ChildExit {
    /// With exit code 0; what it wrote on stdout.
    Success(String),
    /// In any other way; the reason, one line.
    Failure(String),
    /// It was stopped with this program, whatever its exit code.
    Stopped,
}

/// Runs this program with other arguments, and waits until it ends. Its stderr is appended to the
/// file `log`. When `interrupter` says stop, it gets SIGINT; when this process dies, Linux kills
/// it.
///
/// * `watch`: is called with `log` twice a second.
///
/// # Errors
/// A log that cannot be written, a child that cannot be started.
pub(super) fn run_child(
    arguments: &Arguments,
    log: &Path,
    interrupter: &Interrupter,
    watch: &mut dyn FnMut(&Path),
) -> Result<ChildExit> {
    let program = std::env::current_exe().context("this program's own file")?;
    let stderr = OpenOptions::new().create(true).append(true).open(log).context(log.display())?;
    let mut stdout = tempfile::tempfile().context("temporary file")?;
    let mut command = Command::new(program);
    command.args(&arguments.0).stdin(Stdio::null()).stderr(stderr);
    command.stdout(stdout.try_clone().context("temporary file")?);
    follow_parent(&mut command);
    let mut child = command.spawn().context("starting a child process")?;
    let (mut told, mut looks) = (false, 0u32);
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for a child process")? {
            break status;
        }
        if interrupter.should_stop() && !told {
            told = true;
            interrupt(&mut child);
        }
        looks = looks.wrapping_add(1);
        if looks.is_multiple_of(WATCH_EVERY) {
            watch(log);
        }
        std::thread::sleep(POLL);
    };
    if status.success() {
        let mut text = String::new();
        stdout.seek(SeekFrom::Start(0)).context("temporary file")?;
        stdout.read_to_string(&mut text).context("temporary file")?;
        return Ok(if told { ChildExit::Stopped } else { ChildExit::Success(text) });
    }
    Ok(if told { ChildExit::Stopped } else { ChildExit::Failure(reason(status, log)) })
}

/// Makes the child a process group of its own, so that Ctrl-C on the terminal reaches it only
/// through this process, and has it killed when this process is.
#[cfg(unix)]
fn follow_parent(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        let parent = std::process::id();
        // SAFETY: between fork and exec only system calls that are safe there are made.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The parent may have died before.
                match libc::getppid() as u32 == parent {
                    true => Ok(()),
                    false => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
                }
            });
        }
    }
}

#[cfg(not(unix))]
fn follow_parent(_: &mut Command) {}

/// Asks a child to end: one that trains writes a checkpoint first.
#[cfg(unix)]
fn interrupt(child: &mut Child) {
    // SAFETY: sends a signal to a child that was not waited for, so its id is still its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
}

#[cfg(not(unix))]
fn interrupt(child: &mut Child) {
    let _ = child.kill();
}

/// Returns why a child failed: the error line that ends its log, or the signal that killed it.
fn reason(status: ExitStatus, log: &Path) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let why = if signal == libc::SIGKILL { ", perhaps for want of memory" } else { "" };
        return format!("killed by signal {signal}{why}");
    }
    let tail = tail(log).unwrap_or_default();
    let line = tail.lines().rev().find_map(|line| line.strip_prefix("error: ")).map(String::from);
    line.unwrap_or_else(|| format!("{status}; see {}", log.display()))
}

/// Returns the end of a log.
pub(super) fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(fs::metadata(log)?.len().saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
