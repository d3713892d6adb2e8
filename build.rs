//! Tells the program what it is built from: commit, profile, target and compiler, for `--version -v`.

use std::path::Path;
use std::process::Command;

fn main() {
    // A build from an archive has no repository; images are told by an argument of the build.
    println!("cargo::rerun-if-env-changed=SOURCE_COMMIT");
    let given = std::env::var("SOURCE_COMMIT").ok();
    let given = given.filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]));
    for file in ["HEAD", "logs/HEAD"] {
        // A file that is missing would build the program again each time.
        let path = output("git", &["rev-parse", "--git-path", file]);
        if let Some(path) = path.filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    println!("cargo::rerun-if-changed=build.rs");
    let rustc = std::env::var("RUSTC").ok();
    let rustc = rustc.and_then(|rustc| output(&rustc, &["--version"]));
    // `cargo run` hands these on to the program, which warns of `VULCANIZED_*` that it does not know.
    for (name, value) in [
        ("COMMIT", commit),
        ("PROFILE", std::env::var("PROFILE").ok()),
        ("TARGET", std::env::var("TARGET").ok()),
        ("RUSTC", rustc),
    ] {
        let value = value.unwrap_or_else(|| "unknown".to_owned());
        println!("cargo::rustc-env=BUILD_{name}={value}");
    }
}

/// The first line that a program prints, if it succeeds.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let line = text.lines().next()?.to_owned();
    output.status.success().then_some(line)
}
