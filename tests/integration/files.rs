//! Files that a run replaces, the store file and the metrics file: both keep owner, mode and symlinks.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;
use std::process::Command;

use crate::support::api::{kubectl, pod};
use crate::support::program::{Answer, vulcanized};

/// Runs with this option at this path and the other file in a temporary folder. The run writes both.
fn run(option: &str, path: &Path) -> Answer {
    let elsewhere = tempfile::tempdir().expect("a folder");
    let other = if option == "--store-file" {
        "--metrics-file"
    } else {
        "--store-file"
    };
    vulcanized("--owner prod --create-backends --pods -")
        .arg(option)
        .arg(path)
        .arg(other)
        .arg(elsewhere.path().join("file"))
        .input(kubectl([pod("default", "web-1", "web", "10.0.0.1")]))
        .run()
}

/// Each option with a text that its file contains after the run.
const OPTIONS: [(&str, &str); 2] = [
    ("--store-file", "/vulcand/backends/web/servers/10.0.0.1"),
    (
        "--metrics-file",
        "vulcanized_last_success_timestamp_seconds",
    ),
];

#[test]
fn owner_and_mode_are_preserved() {
    for (option, text) in OPTIONS {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, if option == "--store-file" { "{}" } else { "" }).expect("it is written");
        chown(&path, Some(1234), Some(2345)).expect("the tests run as root");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).expect("its mode");
        let inode = fs::metadata(&path).expect("it is there").ino();
        let answer = run(option, &path);
        assert_eq!(answer.code, 0, "{answer}");
        let found = fs::metadata(&path).expect("it is there");
        assert_ne!(found.ino(), inode, "{option}: replaced, not overwritten");
        let found = (found.uid(), found.gid(), found.mode() & 0o7777);
        assert_eq!(found, (1234, 2345, 0o660), "{option}");
        let content = fs::read_to_string(&path).expect("it is there");
        assert!(content.contains(text), "{option}: {content}");
    }
}

#[test]
fn symlinks_are_followed_and_preserved() {
    for (option, text) in OPTIONS {
        for exists in [true, false] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = |name: &str| folder.path().join(name);
            for name in ["links", "files"] {
                fs::create_dir(path(name)).expect("a folder");
            }
            if exists {
                let old = if option == "--store-file" { "{}" } else { "" };
                fs::write(path("files/file"), old).expect("it is written");
            }
            // A relative link to a relative link.
            symlink("../files/file", path("links/inner")).expect("a link");
            symlink("inner", path("links/outer")).expect("a link");
            let answer = run(option, &path("links/outer"));
            assert_eq!(answer.code, 0, "{answer}");
            assert!(path("links/inner").is_symlink() && path("links/outer").is_symlink());
            let content = fs::read_to_string(path("files/file")).expect("it is there");
            assert!(content.contains(text), "{option}, {exists}: {content}");
            for name in ["links", "files"] {
                let count = fs::read_dir(path(name)).expect("a folder").count();
                assert_eq!(count, if name == "links" { 2 } else { 1 }, "{option}");
            }
        }
    }
}

#[test]
fn devices_and_read_only_files_are_not_replaced() {
    for (option, _) in OPTIONS {
        let folder = tempfile::tempdir().expect("a folder");
        let device = folder.path().join("null");
        let status = Command::new("mknod")
            .arg(&device)
            .args(["c", "1", "3"])
            .status();
        assert!(status.expect("mknod").success(), "the tests run as root");
        let answer = run(option, &device);
        assert_eq!(answer.code, 1, "{option}: {answer}");
        let kind = fs::metadata(&device).expect("it is there").file_type();
        assert!(kind.is_char_device(), "{option}: {answer}");
        let file = folder.path().join("file");
        fs::write(&file, "{}").expect("it is written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).expect("its mode");
        let answer = run(option, &file);
        assert!(
            answer.code == 1 && answer.err.contains("it is read-only"),
            "{answer}"
        );
        assert_eq!(fs::read_to_string(&file).expect("it is there"), "{}");
    }
}
