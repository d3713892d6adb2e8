//! Atomic replacement of the store file and the metrics file.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Follows the links of a path, including one to a file that does not exist yet.
#[must_use]
pub(crate) fn target(path: &Path) -> PathBuf {
    /// The limit of Linux.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if let Ok(path) = fs::canonicalize(&path) {
            return path;
        }
        let Ok(link) = fs::read_link(&path) else {
            break;
        };
        path = folder(&path).join(link);
    }
    path
}

/// The folder that a file is in.
#[must_use]
pub(crate) fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Replaces a file atomically: writes and syncs a new file beside it, then renames it over the old one.
/// Follows links. Keeps the mode, and owner and group as far as this user may set them. A file that did not
/// exist gets `mode`, by default 0666 less the umask.
///
/// # Errors
/// The step that failed; the old file is unchanged. A file that is read-only or not a regular file is not
/// replaced.
pub(crate) fn replace(path: &Path, content: &[u8], mode: Option<u32>) -> anyhow::Result<()> {
    let path = target(path);
    let folder = folder(&path);
    let old = fs::metadata(&path).ok();
    let mode = match &old {
        Some(old) if !old.is_file() => bail!("it is not a regular file"),
        Some(old) if old.permissions().readonly() => bail!("it is read-only"),
        Some(old) => Some(old.mode()),
        None => mode,
    };
    let mut file = tempfile::Builder::new()
        .prefix(".vulcanized-")
        // The mode of a new file, before the umask.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(|| format!("failed to create a file in `{}`", folder.display()))?;
    if let Some(old) = &old {
        // Only root may set another owner. A member of the group may set the group.
        let set = fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
        let _ = set.or_else(|_| fchown(file.as_file(), None, Some(old.gid())));
    }
    if let Some(mode) = mode {
        // After `fchown`, which may clear bits of the mode.
        let mode = fs::Permissions::from_mode(mode);
        file.as_file().set_permissions(mode)?;
    }
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    if let Ok(folder) = fs::File::open(folder) {
        // Best effort: sync the rename, too.
        let _ = folder.sync_all();
    }
    Ok(())
}
