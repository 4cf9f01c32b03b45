//! Typed reads from a JSON object, with errors that name the key.

use serde_json::{Map, Value};

use super::refuse;
use crate::Result;

/// A JSON object whose keys are read by type; `null` means absent.
pub(super) struct Keys<'a> {
    pub(super) object: &'a Map<String, Value>,
    /// Text that errors put before a key.
    pub(super) prefix: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// Returns whether the value is `null`, for keys whose default is something else.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    fn read<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => refuse(format!("{}{key} is not {what}", self.prefix)),
            },
        }
    }

    pub(super) fn size(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.optional_size(key)?.unwrap_or(default))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        let size = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        self.read(key, "a whole number", size)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(number) => Ok(number),
            None => refuse(format!("no {}{key}", self.prefix)),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.read(key, "true or false", Value::as_bool)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    /// Reads an array; `read` converts each element.
    pub(super) fn list<T>(&self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<Vec<T>>> {
        self.read(key, what, |value| value.as_array()?.iter().map(&read).collect())
    }

    pub(super) fn child(&self, key: &str, prefix: &'static str) -> Result<Option<Keys<'a>>> {
        let object = self.read(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Keys { object, prefix }))
    }

    /// Refuses any other number, which would change the forward pass.
    pub(super) fn only_number(&self, key: &str, only: f64) -> Result<()> {
        match self.number(key)?.filter(|number| *number != only) {
            Some(number) => refuse(format!("{}{key} {number} is not supported, only {only} is", self.prefix)),
            None => Ok(()),
        }
    }
}
