//! Leaves the metrics of a run in a file.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use crate::report::metrics::{Run, last_success, render};
use crate::run::Outcome;

/// Writes the metrics of a run beside the old file, then puts them in its place. The time of the last
/// success is kept from there if this run was none.
///
/// # Errors
/// When the file cannot be written; the old one is left as it is.
pub fn write(
    path: &Path,
    owner: &str,
    start: SystemTime,
    exit_code: u8,
    outcome: Option<&Outcome>,
) -> anyhow::Result<()> {
    let failed = || format!("failed to write the metrics file `{}`", path.display());
    let old = fs::read_to_string(path).unwrap_or_default();
    let text = render(&Run {
        owner,
        start: start
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs_f64(),
        duration: start.elapsed().unwrap_or(Duration::ZERO).as_secs_f64(),
        exit_code,
        last_success: last_success(&old, owner),
        plan: outcome.map(|outcome| (&outcome.plan, outcome.applied.as_slice())),
    });
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".vulcanized-")
        .tempfile_in(folder)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).with_context(failed)?;
    // The collector runs as somebody else.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let readable = fs::Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(readable)
            .with_context(failed)?;
    }
    file.persist(path).with_context(failed)?;
    Ok(())
}
