//! The flags of the command line in messages of the library.

use clap::{Command, CommandFactory};

use super::arguments::Cli;

/// Beginning of an option in a message of the library, which writes "option `time_format`": it
/// knows no command line.
const OPTION: &str = "option `";

/// Returns a message with the library's options as flags: `--time-format`.
pub(super) fn with_flags(message: &str) -> String {
    let command = Cli::command();
    let mut parts = message.split(OPTION);
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let option = part.split_once('`').and_then(|(id, rest)| Some((flag(&command, id)?, rest)));
        match option {
            Some((flag, rest)) => text += &format!("--{flag}{rest}"),
            None => text += &format!("{OPTION}{part}"),
        }
    }
    text
}

/// Returns the flag of the argument with this id, of whichever command has it.
fn flag(command: &Command, id: &str) -> Option<String> {
    let mut arguments = command.get_subcommands().flat_map(Command::get_arguments);
    arguments.find(|argument| argument.get_id() == id)?.get_long().map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags() {
        let message = "r.csv: option `time_format` says it, or option `names` a,b; option `no_such` and `option`";
        let expected = "r.csv: --time-format says it, or --columns a,b; option `no_such` and `option`";
        assert_eq!(with_flags(message), expected);
        assert_eq!(with_flags("option `backend` wgpu:3: no device is that"), "--backend wgpu:3: no device is that");
    }

    /// Every option that the sources name in a message has a flag.
    #[test]
    fn every_option_of_a_message_has_a_flag() {
        fn sources(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.path() {
                    path if path.is_dir() => sources(&path, found),
                    path => found.push(path),
                }
            }
        }
        let (command, mut files, mut count) = (Cli::command(), Vec::new(), 0);
        sources(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
        for file in files.iter().filter(|file| !file.ends_with("cli/flags.rs")) {
            let text = std::fs::read_to_string(file).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            for part in code.flat_map(|line| line.split(OPTION).skip(1)) {
                let id = part.split('`').next().unwrap();
                assert!(id.starts_with('{') || flag(&command, id).is_some(), "{}: option `{id}`", file.display());
                count += 1;
            }
        }
        assert!(count > 20, "{count} options found");
    }
}
