//! The JSON schema of run files, for editors.

use regex::Regex;
use schemars::Schema;
use schemars::transform::{RecursiveTransform, Transform};

use super::check::RunFileKind;
use super::{AlignConfig, RunConfig};
use crate::{Context, Result};

/// Returns the JSON schema (draft 2020-12) of a kind of run file, with the keys' documentation.
///
/// # Errors
/// A pattern that does not compile.
pub fn run_file_schema(kind: RunFileKind) -> Result<Schema> {
    // Links of the code's documentation: [`crate::text::Prompt`] is `Prompt` to a reader.
    let link = Regex::new(r"\[`(?:\w+::)*([^`]+)`\]").context("pattern of links")?;
    let mut schema = match kind {
        RunFileKind::Train => schemars::schema_for!(RunConfig),
        RunFileKind::Align => schemars::schema_for!(AlignConfig),
    };
    let plain = |schema: &mut Schema| {
        if let Some(description) = schema.get("description").and_then(|description| description.as_str()) {
            let description = link.replace_all(description, "`$1`").into_owned();
            schema.insert("description".into(), description.into());
        }
    };
    RecursiveTransform(plain).transform(&mut schema);
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_have_keys_values_and_docs() {
        let schema = serde_json::to_value(run_file_schema(RunFileKind::Train).unwrap()).unwrap();
        assert_eq!(schema["required"], serde_json::json!(["data", "llm"]));
        assert_eq!(schema["additionalProperties"], false);
        let definition = |name: &str| &schema["$defs"][name];
        assert!(definition("TrainConfig")["properties"]["learning_rate"]["description"].is_string());
        assert_eq!(definition("TrainConfig")["properties"]["batch_size"]["default"], 128);
        let text = schema.to_string();
        for value in ["\"bear\"", "\"adaptive\"", "\"transformers\"", "\"qformer\"", "\"length_penalty\"", "\"xi\""] {
            assert!(text.contains(value), "{value}");
        }
        assert!(!text.contains("crate::") && !text.contains("[`"), "links of the documentation are left");
        let align = serde_json::to_value(run_file_schema(RunFileKind::Align).unwrap()).unwrap();
        assert!(align["properties"]["qformer"].is_object());
    }
}
