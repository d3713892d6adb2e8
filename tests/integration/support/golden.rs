//! Golden files: expected output of the program.

use std::fs;
use std::path::Path;

use similar::TextDiff;

/// Compares with the golden file; `BLESS=1` writes the file first.
#[track_caller]
pub fn golden(path: &Path, got: &str) {
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, got).expect("it is written");
    }
    let wanted = fs::read_to_string(path).unwrap_or_default();
    let diff = TextDiff::from_lines(wanted.as_str(), got);
    assert!(
        got == wanted,
        "{} differs (`BLESS=1` accepts it):\n{}",
        path.display(),
        diff.unified_diff().header("wanted", "got")
    );
}
