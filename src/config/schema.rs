//! The JSON schema of run files, for editors.

use regex::Regex;
use schemars::Schema;
use schemars::transform::{RecursiveTransform, Transform};
use serde_json::json;

use super::check::RunFileKind;
use super::extends::KEY;
use super::{AlignConfig, RunConfig};
use crate::{Context, Result};

/// Returns the JSON schema (draft 2020-12) of a kind of run file, with the keys' documentation. A
/// file that has `extends` may leave out any key, so only a file without it must have the tables
/// without a default; `itemlm configs check` says which keys are missing.
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
    let tables = schema.remove("required");
    let plain = |schema: &mut Schema| {
        if let Some(description) = schema.get("description").and_then(|description| description.as_str()) {
            let description = link.replace_all(description, "`$1`").into_owned();
            schema.insert("description".into(), description.into());
        }
        schema.remove("required");
    };
    RecursiveTransform(plain).transform(&mut schema);
    let extends = json!({ "type": "string", "description": "Path of the run file whose keys this one begins with." });
    if let Some(properties) = schema.get_mut("properties").and_then(|properties| properties.as_object_mut()) {
        properties.insert(KEY.into(), extends);
    }
    schema.insert("anyOf".into(), json!([{ "required": [KEY] }, { "required": tables }]));
    Ok(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_have_keys_values_and_docs() {
        let schema = serde_json::to_value(run_file_schema(RunFileKind::Train).unwrap()).unwrap();
        assert_eq!(schema["anyOf"], json!([{ "required": ["extends"] }, { "required": ["data", "llm"] }]));
        assert!(schema["properties"]["extends"].is_object());
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
