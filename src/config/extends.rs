//! `extends = "office.toml"`: a run file that begins with the keys of another.

use std::fs;
use std::path::{Path, PathBuf};

use super::replaced_key;
use crate::core::files::folder;
use crate::{Context, Error, Result};

/// The key that names the other file.
pub(super) const KEY: &str = "extends";

/// A run file's keys, those of the files that it extends included.
pub(crate) struct Extended {
    /// The keys, without `extends`.
    pub table: toml::Table,
    /// The names of all files that were read, for errors: `a.toml (extends b.toml)`.
    pub name: String,
}

/// Reads a run file and those that it extends. A path is relative to the file that names it; a key
/// of the extending file wins, and tables are merged key by key.
///
/// # Errors
/// A run file that cannot be read; usage errors for bad TOML, an extended file that cannot be read,
/// and files that extend each other.
pub(crate) fn read_extended(path: &Path) -> Result<Extended> {
    let text = fs::read_to_string(path).context(path.display())?;
    let mut read = vec![path.to_path_buf()];
    let mut table = parse(&text, path)?;
    while let Some(parent) = extended_file(&mut table, &read)? {
        let named = |why: &dyn std::fmt::Display| {
            let by = read.last().map_or_else(String::new, |by| by.display().to_string());
            Error::usage(format!("{by}: {KEY} = {:?}: {why}", parent.display().to_string()))
        };
        let text = fs::read_to_string(&parent).map_err(|e| named(&e))?;
        let mut base = parse(&text, &parent)?;
        merge(&mut base, table);
        table = base;
        read.push(parent);
    }
    let names: Vec<String> = read.iter().map(|path| path.display().to_string()).collect();
    Ok(Extended { table, name: names.join(" extends ") })
}

/// Reads the keys of the file that a run file extends, and of those that that one extends; none
/// where it extends no file.
///
/// # Errors
/// As [`read_extended`], for the files after the first; a first file that is not TOML extends none.
pub(crate) fn inherited_keys(path: &Path) -> Result<toml::Table> {
    let text = fs::read_to_string(path).context(path.display())?;
    let Ok(mut table) = text.parse::<toml::Table>() else { return Ok(toml::Table::new()) };
    match extended_file(&mut table, &[path.to_path_buf()])? {
        None => Ok(toml::Table::new()),
        Some(parent) => {
            read_extended(path)?;
            Ok(read_extended(&parent)?.table)
        }
    }
}

fn parse(text: &str, path: &Path) -> Result<toml::Table> {
    text.parse().map_err(|e| Error::usage(format!("{}: {e}", path.display())))
}

/// Takes `extends` out of the last file of `read`; the path of the file that it names.
fn extended_file(table: &mut toml::Table, read: &[PathBuf]) -> Result<Option<PathBuf>> {
    let (Some(value), Some(by)) = (table.remove(KEY), read.last()) else { return Ok(None) };
    let toml::Value::String(name) = value else {
        return Err(Error::usage(format!("{}: {KEY} is {value}, it must be the path of a run file", by.display())));
    };
    let parent = folder(by).join(name);
    // An absent file is reported where it is read.
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    match read.iter().any(|other| real(other) == real(&parent)) {
        false => Ok(Some(parent)),
        true => {
            let chain: Vec<String> = read.iter().chain([&parent]).map(|path| path.display().to_string()).collect();
            Err(Error::usage(format!("{}: {KEY} goes in a circle: {}", read[0].display(), chain.join(", "))))
        }
    }
}

/// Sets the keys of `over` in `base`.
pub(super) fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        if let Some(other) = replaced_key(&key) {
            base.remove(other);
        }
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::{AlignConfig, LossKind, RunConfig, Temperature};

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
        dir
    }

    #[test]
    fn the_keys_of_the_child_win() {
        let dir = folder(&[
            ("base.toml", "[data]\ncorpus = \"c\"\nrows = \"r\"\n[llm]\npath = \"m\"\n[loss]\ntemperature = 2.5\n"),
            ("middle.toml", "extends = \"base.toml\"\nseed = 1\n[train]\nepochs = 3\nmicro_batch_tokens = 64\n"),
            (
                "sub/child.toml",
                "extends = \"../middle.toml\"\nseed = 2\n[loss]\nkind = \"lml\"\n[data]\ntext_tasks = \
             \"s\"\n[train]\nmicro_batch_size = 2\n",
            ),
        ]);
        let config = RunConfig::open(&dir.path().join("sub/child.toml"), &["train.epochs=4".into()]).unwrap();
        assert_eq!((config.seed, config.train.epochs, config.data.corpus.as_str()), (2, 4, "c"));
        assert_eq!((config.loss.kind, config.loss.temperature), (LossKind::Lml, Temperature::Fixed(2.5)));
        assert_eq!(config.data.text_tasks.as_deref(), Some("s"), "an old spelling in the extended file");
        assert_eq!((config.train.micro_batch_size, config.train.micro_batch_tokens), (Some(2), None));
        assert!(!config.to_toml().unwrap().contains("extends"));
        assert_eq!(RunConfig::parse(&config.to_toml().unwrap(), &[], "again").unwrap(), config);
    }

    #[test]
    fn phase_1_extends_too() {
        let base = "[data]\ncorpus = \"c\"\nvectors = \"v\"\n[qformer]\ntext = \"m\"\n";
        let dir = folder(&[("base.toml", base), ("ii.toml", "extends = \"base.toml\"\n[loss]\nitem_item = 1\n")]);
        let config = AlignConfig::open(&dir.path().join("ii.toml"), &[]).unwrap();
        assert_eq!((config.loss.item_item, config.data.corpus.as_str()), (1.0, "c"));
    }

    #[test]
    fn one_error_names_the_file() {
        let dir = folder(&[
            ("self.toml", "extends = \"self.toml\"\n"),
            ("a.toml", "extends = \"sub/b.toml\"\n"),
            ("sub/b.toml", "extends = \"../sub/../a.toml\"\n"),
            ("absent.toml", "extends = \"nowhere.toml\"\n"),
            ("number.toml", "extends = 3\n"),
            ("bad.toml", "[data\n"),
            ("of-bad.toml", "extends = \"bad.toml\"\n"),
            ("key.toml", "[data]\ncorpus = \"c\"\n[llm]\npath = \"m\"\npth = 1\n"),
            ("of-key.toml", "extends = \"key.toml\"\n"),
        ]);
        for (file, named) in [
            ("self.toml", &["goes in a circle"][..]),
            ("a.toml", &["goes in a circle", "sub/b.toml"]),
            ("absent.toml", &["absent.toml: extends", "nowhere.toml"]),
            ("number.toml", &["number.toml: extends is 3"]),
            ("of-bad.toml", &["/bad.toml: "]),
            ("of-key.toml", &["of-key.toml extends", "/key.toml", "pth"]),
        ] {
            let error = RunConfig::open(&dir.path().join(file), &[]).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{file}: {error}");
            named.iter().for_each(|named| assert!(error.to_string().contains(named), "{file}: {error}"));
        }
        let absent = RunConfig::open(&dir.path().join("no.toml"), &[]).unwrap_err();
        assert_eq!(absent.exit_code(), 1, "{absent}");
    }
}
