//! Replaces files: the store file and the metrics file, in the same way.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

/// Where a path leads, links followed, also one to a file that is yet to be made.
#[must_use]
pub(crate) fn target(path: &Path) -> PathBuf {
    /// As many as Linux follows.
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

/// Writes a file beside the old one, then puts it in the old one's place: whoever reads it sees the one or the
/// other, whole, and so does a power cut. A link stays a link: what it points at is replaced. The file keeps
/// its mode, and its owner and group as far as this user may give files away. A new one gets `mode`, or else
/// what the umask leaves.
///
/// # Errors
/// What failed; then the old file is as it was. One that is read-only, or no regular file, is not replaced.
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
        // What a new file is made with, less the umask.
        .permissions(fs::Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .with_context(|| format!("failed to make a file in `{}`", folder.display()))?;
    if let Some(old) = &old {
        // Only root may give a file to another user; its group others may keep if they are in it.
        let given = fchown(file.as_file(), Some(old.uid()), Some(old.gid()));
        let _ = given.or_else(|_| fchown(file.as_file(), None, Some(old.gid())));
    }
    if let Some(mode) = mode {
        // After the owner: giving a file away may take bits of its mode.
        let mode = fs::Permissions::from_mode(mode);
        file.as_file().set_permissions(mode)?;
    }
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(&path)?;
    if let Ok(folder) = fs::File::open(folder) {
        // The new name too shall outlive a power cut; where that cannot be asked for, it may not.
        let _ = folder.sync_all();
    }
    Ok(())
}
