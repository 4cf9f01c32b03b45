//! Prompts: templates, sets of templates for one task, and text tasks. Each is embedded in the
//! program (`assets/`) or read from a file of the same format.

mod library;
mod prompt_set;
mod template;
mod text_task;

pub use prompt_set::{PromptChoice, PromptSet};
pub use template::{Prompt, PromptSegment, PromptValue, PromptValues};
pub use text_task::{ELM24, TextTask, elm24};
