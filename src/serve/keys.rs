//! Keys that clients show.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Context, Error, Result};

/// Keys of which a client must show one, as `Authorization: Bearer KEY`. Only digests are kept.
pub struct ApiKeys(Vec<[u8; 32]>);

impl ApiKeys {
    /// Reads a file with one key a line.
    ///
    /// # Errors
    /// A file that cannot be read or has no key; a key of fewer than 16 characters, or with a
    /// space.
    pub fn open(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).context(path.display())?;
        let mut keys = Vec::new();
        for (line, key) in (1..).zip(text.lines()).map(|(n, line)| (n, line.trim())).filter(|(_, key)| !key.is_empty())
        {
            if key.len() < 16 || key.contains(char::is_whitespace) {
                return Err(Error::usage(format!(
                    "{}: line {line}: a key has at least 16 characters and no space",
                    path.display()
                )));
            }
            keys.push(Sha256::digest(key).into());
        }
        match keys.is_empty() {
            true => Err(Error::usage(format!("{}: there is no key; write one a line", path.display()))),
            false => Ok(Self(keys)),
        }
    }

    /// Returns whether `authorization`, the header's value, shows one of the keys. The time that it
    /// takes does not depend on how much of a key is right: digests are compared, and all of them.
    pub fn allow(&self, authorization: Option<&[u8]>) -> bool {
        let shown = authorization.and_then(|value| {
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let digest: [u8; 32] = Sha256::digest(shown.unwrap_or_default().trim_ascii()).into();
        let differs = |key: &[u8; 32]| key.iter().zip(&digest).fold(0, |sum, (a, b)| sum | (a ^ b)) != 0;
        let right = self.0.iter().filter(|key| !differs(key)).count();
        shown.is_some() && right > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_the_keys_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let open = |text: &str| {
            fs::write(&path, text).unwrap();
            ApiKeys::open(&path).map_err(|error| error.to_string())
        };
        let keys = open("  0123456789abcdef\n\nfedcba9876543210  \n").unwrap();
        for (shown, allowed) in [
            ("Bearer 0123456789abcdef", true),
            ("bearer fedcba9876543210", true),
            ("Bearer 0123456789abcdee", false),
            ("Bearer ", false),
            ("Bearer", false),
            ("Basic 0123456789abcdef", false),
            ("0123456789abcdef", false),
        ] {
            assert_eq!(keys.allow(Some(shown.as_bytes())), allowed, "{shown}");
        }
        assert!(!keys.allow(None) && !keys.allow(Some(b"\xff\xfe")));
        for (text, expected) in
            [("", "no key"), ("short\n", "line 1"), ("0123456789abcdef\n0123456789 abcdef", "line 2")]
        {
            assert!(open(text).err().unwrap().contains(expected), "{text}");
        }
    }
}
