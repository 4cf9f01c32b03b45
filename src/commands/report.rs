//! `itemlm report DIR`

use std::path::Path;

use crate::Result;
use crate::core::files::write_atomic;
use crate::report::report_page;

/// Writes the report on an experiment or a run as one HTML file.
///
/// # Errors
/// Those of [`report_page`]; a file that cannot be written.
pub fn report(dir: &Path, out: &Path) -> Result<()> {
    write_atomic(out, report_page(dir)?.as_bytes())
}
