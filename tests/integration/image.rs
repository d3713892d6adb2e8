//! The image: built from the static binary by buildah, and run in a chroot without a container engine.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::program::{Answer, root};

fn run(program: &str, arguments: &[&str]) -> Answer {
    let mut command = Command::new(program);
    let output = command.args(arguments).current_dir(root()).output();
    Answer::from(output.unwrap_or_else(|error| panic!("{program}: {error}: run `tests/setup`")))
}

/// buildah with its own storage.
struct Buildah {
    folder: tempfile::TempDir,
}

impl Buildah {
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> String {
        let path = |name: &str| self.folder.path().join(name).display().to_string();
        let (storage, state) = (path("storage"), path("state"));
        let mut all = vec![
            "--storage-driver",
            "vfs",
            "--root",
            &storage,
            "--runroot",
            &state,
        ];
        all.extend(arguments);
        let answer = run("buildah", &all);
        assert!(answer.code == 0, "{arguments:?}: {answer}");
        answer.out.trim().to_owned()
    }
}

#[test]
fn the_image_is_one_file_and_runs_unprivileged_on_a_read_only_root() {
    let binary = root().join("target/static/vulcanized");
    assert!(binary.exists(), "no static binary: run `tests/static`");
    let buildah = Buildah {
        folder: tempfile::tempdir().expect("a temporary folder"),
    };
    buildah.run(&[
        "build",
        "--isolation=chroot",
        "--target=image",
        "--build-context=build=target/static",
        "--tag=vulcanized",
        ".",
    ]);
    let image = buildah.run(&["inspect", "--type=image", "vulcanized"]);
    let image = serde_json::from_str::<Value>(&image).expect("JSON");
    let config = &image["OCIv1"]["config"];
    assert_eq!(config["User"], "65532:65532", "{config}");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/vulcanized"]));
    let container = buildah.run(&["from", "vulcanized"]);
    let files = buildah.run(&["mount", &container]);
    let found = run("find", &[&files, "-mindepth", "1", "-printf", "/%P %s\n"]).out;
    let size = fs::metadata(&binary).expect("it is there").len();
    assert_eq!(found, format!("/vulcanized {size}\n"), "one file");
    // An overlay of the image over an empty `demo` folder. Without an upper layer the mount is read-only.
    let folder = buildah.folder.path();
    let demo = folder.join("demo");
    fs::create_dir_all(folder.join("below/demo")).expect("a folder");
    fs::create_dir_all(folder.join("root")).expect("a folder");
    fs::create_dir(&demo).expect("a folder");
    for file in ["pods.json", "store.json"] {
        let from = root().join("fixtures/demo").join(file);
        fs::copy(from, demo.join(file)).expect("it is copied");
    }
    assert_eq!(
        run("chown", &["-R", "65532:65532", &demo.display().to_string()]).code,
        0
    );
    let script = format!(
        "set -e; cd {folder}; mount -t overlay none -o lowerdir={files}:below root\n\
         mount --bind demo root/demo\n\
         run() {{ chroot --userspec=65532:65532 root {entry} \"$@\"; }}\n\
         run --version\n\
         run --owner demo --pods /demo/pods.json --store-file /demo/store.json\n\
         run --owner demo --pods /demo/pods.json --store-file /demo/store.json\n\
         run --owner demo --pods /demo/pods.json --store-file /store.json --create-backends && exit 9\n\
         exit 0",
        folder = folder.display(),
        entry = config["Entrypoint"][0].as_str().expect("a path"),
    );
    let answer = run("unshare", &["--mount", "sh", "-c", &script]);
    assert!(answer.code == 0, "{answer}");
    let expected = format!(
        "vulcanized {}\n\
         + shop/10.200.1.3  pod default/shop-7d9f-b is ready\n\
         - shop/10.200.1.9  pod default/shop-6c5d-z is terminating\n\
         1 created, 1 deleted, 1 unchanged\n\
         in sync: 2 unchanged\n",
        env!("CARGO_PKG_VERSION")
    );
    assert!(answer.out.starts_with(&expected), "{answer}");
    assert!(answer.err.contains("Read-only file system"), "{answer}");
    let owner = run(
        "stat",
        &[
            "-c",
            "%u:%g",
            &demo.join("store.json").display().to_string(),
        ],
    );
    assert_eq!(owner.out, "65532:65532\n", "written by the image's user");
}

/// The files that the first stage copies suffice for the build: cargo rejects a manifest whose targets are missing.
#[test]
fn the_first_stage_copies_what_the_build_needs() {
    let dockerfile = fs::read_to_string(root().join("Dockerfile")).expect("Dockerfile");
    let (first, _) = dockerfile.split_once("\nFROM scratch").expect("two stages");
    let copies = first.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copies = copies.map(|line| line.split(' ').collect::<Vec<_>>());
    let copies = copies.collect::<Vec<_>>();
    let builds = |left_out: &str| {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for copy in &copies {
            let (target, sources) = copy.split_last().expect("a target");
            let sources = sources.iter().filter(|source| **source != left_out);
            for source in sources {
                let to = folder.path().join(target);
                fs::create_dir_all(to.parent().expect("a folder")).expect("it is made");
                let to = to.display().to_string();
                assert_eq!(run("cp", &["-r", source, &to]).code, 0, "{source}");
            }
        }
        let mut cargo = Command::new(env!("CARGO"));
        let output = cargo
            .args(["fetch", "--locked", "--offline"])
            .current_dir(folder.path())
            .output();
        let answer = Answer::from(output.expect("cargo runs"));
        // cargo does not notice when the script that builds the static binary or the build script is missing.
        let scripts = ["tests/static", "build.rs"];
        let complete = scripts.iter().all(|file| folder.path().join(file).exists());
        (answer.code == 0 && complete, answer.err)
    };
    let (ok, err) = builds("");
    assert!(ok, "{err}");
    for needed in ["benches", "build.rs", "Cargo.lock"] {
        assert!(!builds(needed).0, "{needed}: the check can fail");
    }
}
