use super::*;
pub(crate) fn read(_: &[PathBuf], _: &ReadOptions, _: &mut Job) -> Result<Raw> {
    Err(Error::failed("soon"))
}
