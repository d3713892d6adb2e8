//! The documents: their commands run, their links resolve, and the reference is the program's output.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::etcd::test_tools;
use crate::support::golden::golden;
use crate::support::program::{Answer, program, root, vulcanized};

/// All documents, by their paths from the root.
fn documents() -> Vec<(PathBuf, String)> {
    let docs = fs::read_dir(root().join("docs")).expect("docs");
    let docs = docs.map(|entry| Path::new("docs").join(entry.expect("one").file_name()));
    let mut paths = docs.collect::<Vec<_>>();
    paths.push(PathBuf::from("README.md"));
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).expect("UTF-8");
        (path, text)
    };
    paths.into_iter().map(read).collect()
}

/// A fenced block, with the comment above it.
struct Block {
    language: String,
    comment: String,
    text: String,
}

fn blocks_of(document: &str) -> Vec<Block> {
    let lines = document.lines().map(str::trim).collect::<Vec<_>>();
    let mut blocks = Vec::new();
    let mut at = 0;
    while let Some(start) = (at..lines.len()).find(|&line| lines[line].starts_with("```")) {
        let end = (start + 1..lines.len())
            .find(|&line| lines[line] == "```")
            .expect("an end");
        let above = start.checked_sub(1).map_or("", |line| lines[line]);
        let comment = above
            .strip_prefix("<!-- ")
            .and_then(|rest| rest.strip_suffix(" -->"));
        // Indented blocks of a list are as deep as their fence.
        let deep = document.lines().nth(start).expect("it is there");
        let deep = deep.len() - deep.trim_start().len();
        let text = document.lines().skip(start + 1).take(end - start - 1);
        let text = text.map(|line| format!("{}\n", line.get(deep..).unwrap_or_default()));
        blocks.push(Block {
            language: lines[start][3..].to_owned(),
            comment: comment.unwrap_or_default().to_owned(),
            text: text.collect(),
        });
        at = end + 1;
    }
    blocks
}

/// The README's blocks of one language.
pub fn blocks(language: &str) -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let blocks = blocks_of(&readme).into_iter();
    let blocks = blocks.filter(|block| block.language == language);
    blocks.map(|block| block.text).collect()
}

/// The shell blocks that say they run in this test.
pub fn shell_blocks(test: &str) -> Vec<String> {
    let comment = format!("test: {test}");
    let blocks = documents()
        .into_iter()
        .flat_map(|(_, text)| blocks_of(&text));
    let found = blocks.filter(|block| block.language == "sh" && block.comment == comment);
    found.map(|block| block.text).collect()
}

/// The one of this test.
pub fn shell_block(test: &str) -> String {
    let [block] = shell_blocks(test).try_into().expect("one block");
    block
}

pub fn sh(script: &str, environment: &[(&str, &str)]) -> Answer {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .current_dir(root())
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    command.envs(environment.iter().copied());
    Answer::from(command.output().expect("sh runs"))
}

/// The text of all Rust files below a folder.
fn sources(folder: &Path, into: &mut String) {
    for entry in fs::read_dir(folder).expect("sources") {
        let path = entry.expect("one").path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            into.push_str(&fs::read_to_string(&path).expect("UTF-8"));
        }
    }
}

/// Names of all tests of this crate.
fn tests() -> BTreeSet<String> {
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    sources(&root().join("tests/integration"), &mut code);
    let lines = code.lines().map(str::trim).collect::<Vec<_>>();
    let tests = lines.windows(2).filter(|pair| pair[0] == "#[test]");
    let tests = tests.filter_map(|pair| pair[1].strip_prefix("fn ")?.split('(').next());
    tests.map(str::to_owned).collect()
}

#[test]
fn every_shell_block_runs_in_a_test_or_states_what_it_needs() {
    let tests = tests();
    for (path, text) in documents() {
        for block in blocks_of(&text) {
            let Block {
                language,
                comment,
                text,
            } = block;
            match &*language {
                "sh" => {
                    let test = comment.strip_prefix("test: ").unwrap_or_default();
                    assert!(tests.contains(test), "{}: {text}", path.display());
                }
                "console" => assert!(
                    comment.starts_with("needs ") || comment.starts_with("takes "),
                    "{}: {text}",
                    path.display()
                ),
                "diff" | "json" | "crontab" | "systemd" | "yaml" | "text" => {}
                other => panic!("{}: {other}", path.display()),
            }
        }
    }
    // What is running now.
    let development = fs::read_to_string(root().join("docs/development.md")).expect("UTF-8");
    assert_eq!(blocks_of(&development)[0].text, "tests/run\n");
}

#[test]
fn the_readme_is_short_and_links_resolve() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let lines = readme.lines().count();
    assert!(lines <= 400, "{lines} lines");
    let anchors = |text: &str| -> BTreeSet<String> {
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let anchor = |heading: &str| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let in_anchor = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
            let text = heading.chars().filter(in_anchor).collect::<String>();
            text.replace(' ', "-")
        };
        headings.map(anchor).collect()
    };
    let mut links = 0;
    for (path, text) in documents() {
        let starts = text.match_indices("](").map(|(at, _)| at + 2);
        for target in starts.filter_map(|at| text[at..].split(')').next()) {
            if target.starts_with("https://") {
                continue;
            }
            links += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let other = if file.is_empty() {
                root().join(&path)
            } else {
                root().join(path.parent().expect("a folder")).join(file)
            };
            let other = fs::read_to_string(&other)
                .unwrap_or_else(|_| panic!("{}: {target}", path.display()));
            assert!(
                anchor.is_empty() || anchors(&other).contains(anchor),
                "{}: {target}",
                path.display()
            );
        }
    }
    assert!(links > 10, "{links}");
}

#[test]
fn the_first_command_prints_the_output_in_the_readme() {
    let first = shell_block("the_first_command_prints_the_output_in_the_readme");
    let (install, run) = first
        .split_once("&&\ncp ")
        .expect("it installs, then it runs");
    assert_eq!(
        install,
        "apt-get update && apt-get install -y protobuf-compiler "
    );
    let folder = tempfile::tempdir().expect("a temporary folder");
    let store = folder.path().join("store.json");
    let run = format!("cp {run}").replace("/tmp/store.json", &store.display().to_string());
    let run = run.replace("cargo run --quiet --", &program().display().to_string());
    // `cargo run` gives the program what its build script sets: that must not be taken for an option.
    let script = fs::read_to_string(root().join("build.rs")).expect("build.rs");
    assert!(script.contains("cargo::rustc-env=BUILD_") && !script.contains("env=VULCANIZED"));
    let answer = sh(&run, &[("BUILD_COMMIT", "0")]);
    assert_eq!(
        (answer.code, &*answer.out, &*answer.err),
        (0, &*blocks("diff")[0], "")
    );
    // Without `--dry-run` it makes the changes; again, and it has nothing to do.
    let command = run
        .split("&&")
        .last()
        .expect("the program")
        .replace(" --dry-run", "");
    let applied = sh(&command, &[]);
    assert!(
        applied.out.ends_with("1 created, 1 deleted, 1 unchanged\n"),
        "{applied}"
    );
    let state = || {
        let modified = fs::metadata(&store).expect("it is there").modified();
        (modified.ok(), fs::read(&store).ok())
    };
    let before = state();
    let again = sh(&command, &[]);
    assert_eq!(again.out, "in sync: 2 unchanged\n", "{again}");
    assert_eq!(before, state(), "nothing is written");
}

#[test]
fn the_installed_program_runs() {
    let block = shell_block("the_installed_program_runs");
    assert_eq!(block, "cargo install --locked --path .\n");
    // `cargo install` would build everything again: what it installs is the package's programs.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("Cargo.toml");
    assert!(
        manifest.contains("name = \"vulcanized\"") && manifest.contains("rust-version = \"1.95\"")
    );
    let answer = vulcanized("--version").exits(0);
    assert_eq!(
        answer.out,
        concat!("vulcanized ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

/// Runs a quick start unchanged, in a network and a `/tmp` of its own, and ends what it started.
fn quick_start(test: &str) -> Answer {
    let block = shell_block(test);
    let (install, rest) = block.split_once('\n').expect("lines");
    assert_eq!(install, "apt-get install -y etcd-server etcd-client");
    let script = format!(
        "ip link set lo up\nmount -t tmpfs none /tmp\n\
         trap 'kill $(jobs -p); wait' EXIT\nset -e\n{rest}\n"
    );
    let tools = test_tools();
    let bin = program().parent().expect("a folder");
    let path = format!(
        "{}:/usr/sbin:/usr/bin:/sbin:/bin:{}",
        bin.display(),
        tools.join("bin").display()
    );
    let output = Command::new("timeout")
        .args(["60", "unshare", "--net", "--mount", "bash", "-c", &script])
        .current_dir(root())
        .env_clear()
        .env("PATH", path)
        .output()
        .expect("unshare runs");
    Answer::from(output)
}

#[test]
fn quick_start_with_vulcand() {
    let answer = quick_start("quick_start_with_vulcand");
    assert!(answer.code == 0, "{answer}");
    for line in [
        "2 to create",
        "2 created",
        "/vulcand/backends/shop/servers/10.200.1.2",
        "/vulcand/backends/shop/servers/10.200.1.3",
    ] {
        assert!(answer.out.contains(line), "{line}: {answer}");
    }
}

#[test]
fn quick_start_with_traefik() {
    let answer = quick_start("quick_start_with_traefik");
    assert!(answer.code == 0, "{answer}");
    let service = answer.out.lines().last().expect("a line");
    let service = serde_json::from_str::<Value>(service).expect("JSON");
    let servers = service["loadBalancer"]["servers"].as_array();
    assert_eq!(servers.map(Vec::len), Some(2), "{service}");
    assert_eq!(service["usedBy"][0], "to-shop@etcd", "{service}");
    // The key that the README shows is one of those.
    let key = "traefik/http/services/shop/loadBalancer/servers/demo.file.default.10.200.1.2/url";
    assert!(answer.out.contains(key), "{answer}");
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    assert!(readme.contains(&format!("\n    {key}\n")));
}

#[test]
fn every_fault_in_the_docs_has_a_test() {
    let faults = fs::read_to_string(root().join("docs/faults.md")).expect("docs/faults.md");
    let rows = faults.lines();
    let rows = rows.filter(|line| line.starts_with("| ") && line.ends_with("` |"));
    let names = rows.map(|row| row.rsplit('`').nth(1).expect("a name"));
    let names = names.collect::<Vec<_>>();
    assert!(names.len() >= 60, "{}", names.len());
    let tests = tests();
    for name in names {
        assert!(tests.contains(name), "{name}");
    }
}

#[test]
fn the_rule_is_one_sentence_and_a_table_of_three_rows() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let sentence = "\nA backend never loses more than it keeps, unless what it loses is dead:\n\n";
    let (_, rest) = readme.split_once(sentence).expect("the sentence");
    let table = rest.lines().take_while(|line| line.starts_with('|'));
    let classes = table.filter_map(|row| row.strip_prefix("| **")?.split("**").next());
    let classes = classes.collect::<Vec<_>>();
    assert_eq!(classes, ["dead", "leaving", "unproved"]);
}

#[test]
fn messages_quoted_in_the_readme_are_in_the_source() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let (_, page) = readme.split_once("\n## At 3 a.m.\n").expect("the page");
    let page = page.split("\n## ").next().expect("a first");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let messages = rows.filter_map(|row| row.split('`').next());
    let messages = messages.collect::<Vec<_>>();
    assert!(messages.len() >= 10, "{messages:?}");
    let mut code = String::new();
    sources(&root().join("src"), &mut code);
    // Continued string literals are joined; interpolated values are not compared.
    let mut joined = String::new();
    for line in code.lines() {
        match line.strip_suffix('\\') {
            Some(line) => joined.push_str(line.trim_start()),
            None => {
                joined.push_str(line.trim_start());
                joined.push('\n');
            }
        }
    }
    for message in messages {
        for part in message.split(|c: char| c == '…' || c.is_ascii_digit()) {
            let part = part.trim().trim_end_matches(':');
            assert!(
                part.len() < 3 || joined.contains(part),
                "`{part}` of `{message}`"
            );
        }
    }
}

#[test]
fn the_reference_is_generated_by_the_program() {
    let reference = vulcanized("--generate reference").exits(0).out;
    golden(&root().join("docs/reference.md"), &reference);
    let (_, json) = reference
        .split_once("\n## JSON report\n")
        .expect("the section");
    let json = json.split("\n## ").next().expect("a first");
    let plan = root().join("fixtures/scenarios/everything/plan.json");
    let plan = fs::read_to_string(plan).expect("plan.json");
    let plan = serde_json::from_str::<Value>(&plan).expect("JSON");
    let mut fields = BTreeSet::new();
    fields_of(&plan, &mut fields);
    assert!(fields.len() > 30, "{fields:?}");
    for field in fields {
        assert!(json.contains(&format!("`{field}`")), "{field}");
    }
}

/// The names of all fields; those of `counts` are data.
fn fields_of(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                into.insert(name.clone());
                if name != "counts" {
                    fields_of(value, into);
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields_of(value, into)),
        _ => {}
    }
}

#[test]
fn the_help_fits_and_shows_no_environment_values() {
    let help = vulcanized("--help").exits(0).out;
    for line in help.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for heading in ["Kubernetes:", "Mapping:", "Store:", "Changes:", "Output:"] {
        assert!(help.lines().any(|line| line == heading), "{heading}");
    }
    let options = help
        .lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .count();
    let variables = help.matches("[env: ").count();
    assert!(
        options > 35 && variables > 30,
        "{options} options, {variables} variables"
    );
    assert!(
        !help
            .lines()
            .any(|line| line.contains("[env: VULCANIZED_") && line.contains('='))
    );
}

#[test]
fn the_short_help_is_one_screen() {
    let short = vulcanized("-h").exits(0).out;
    let lines = short.lines().count();
    assert!(lines <= 40, "{lines} lines");
    for line in short.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    let long = vulcanized("--help").exits(0).out;
    let examples = |help: &str| {
        let (_, examples) = help.split_once("\nExamples:\n").expect("examples");
        let examples = examples.lines().map(str::trim);
        let examples = examples.take_while(|line| !line.is_empty());
        let examples = examples.filter(|line| line.contains("vulcanized --"));
        examples.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(examples(&short), examples(&long));
    assert_eq!(examples(&short).len(), 3);
    for example in examples(&short) {
        // The examples fail to connect, which shows that they are not usage errors.
        let example = example.replace("kubectl get pods -o json", "echo");
        let example = example.replace("store.json", "/nonexistent/store.json");
        let example = example.replace("2379", "1");
        let bin = program().parent().expect("a folder").display();
        let answer = sh(&example, &[("PATH", &format!("{bin}:/usr/bin:/bin"))]);
        assert_eq!(answer.code, 1, "{example}: {answer}");
    }
    // A variable is named once, where its option is.
    let variables = long.match_indices("[env: ").map(|(at, _)| &long[at..]);
    let variables = variables.filter_map(|rest| rest.split(']').next());
    let variables = variables.collect::<Vec<_>>();
    let distinct = variables.iter().collect::<BTreeSet<_>>();
    assert_eq!(distinct.len(), variables.len());
    assert!(!short.contains("[env:"), "{short}");
}

#[test]
fn the_version_shows_commit_and_build() {
    let short = concat!("vulcanized ", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(vulcanized("--version").exits(0).out, short);
    for arguments in ["--version -v", "-V -v", "-vV"] {
        let long = vulcanized(arguments).exits(0).out;
        let rest = long.strip_prefix(short).expect("the version first");
        let [commit, build] = rest.lines().collect::<Vec<_>>()[..] else {
            panic!("{long}")
        };
        let commit = commit.strip_prefix("commit: ").expect("the commit");
        let is_hash = commit.len() == 12 && commit.bytes().all(|c| c.is_ascii_hexdigit());
        assert!(is_hash || commit == "unknown", "{commit}");
        assert!(build.starts_with("build: debug, ") || build.starts_with("build: release, "));
        assert!(build.contains("rustc 1."), "{build}");
    }
}

#[test]
fn endpoints_is_an_alias_of_etcd() {
    for name in ["--etcd", "--endpoints"] {
        let program = vulcanized("--owner a --pods - --request-timeout 60s");
        let answer = program.arg(name).arg("http://127.0.0.1:1").exits(1);
        assert!(answer.err.contains("127.0.0.1:1"), "{answer}");
    }
}

#[test]
fn the_man_page_is_complete() {
    let page = vulcanized("--generate man").exits(0).out;
    let sections = page.lines().filter_map(|line| line.strip_prefix(".SH "));
    let sections = sections
        .map(|name| name.trim_matches('"'))
        .collect::<Vec<_>>();
    for name in [
        "NAME",
        "SYNOPSIS",
        "DESCRIPTION",
        "OPTIONS",
        "KUBERNETES",
        "STORE",
        "ENVIRONMENT",
        "EXIT STATUS",
        "FILES",
        "EXAMPLES",
        "SEE ALSO",
    ] {
        assert!(sections.contains(&name), "{name} in {sections:?}");
    }
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let check = |page: &str| {
        fs::write(file.path(), page).expect("it is written");
        let mut groff = Command::new("groff");
        let output = groff.args(["-man", "-ww", "-z"]).arg(file.path()).output();
        Answer::from(output.expect("groff: run `tests/setup`")).err
    };
    assert_eq!(check(&page), "");
    assert!(
        !check(&format!("{page}.nosuch\n")).is_empty(),
        "the check can fail"
    );
}

#[test]
fn completions_and_a_man_page() {
    let block = shell_block("completions_and_a_man_page");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path().display().to_string();
    let block = block.replace("/usr/share/bash-completion/completions", &folder);
    let block = block.replace("/usr/share/man/man1", &folder);
    let path = format!(
        "{}:/usr/bin:/bin",
        program().parent().expect("a folder").display()
    );
    let pasted = sh(&block, &[("PATH", &path)]);
    assert!(pasted.code == 0, "{pasted}");
    for (what, mark) in [
        ("bash", "complete -F"),
        ("zsh", "#compdef"),
        ("fish", "complete -c"),
        ("man", ".TH"),
    ] {
        let answer = vulcanized(&format!("--generate {what}")).exits(0);
        assert!(
            answer.out.contains(mark) && answer.out.contains("owner"),
            "{what}"
        );
        assert!(
            what != "man" || !answer.out.contains("generate"),
            "it is hidden"
        );
        let file = match what {
            "bash" => format!("{folder}/vulcanized"),
            "man" => format!("{folder}/vulcanized.1"),
            _ => continue,
        };
        assert_eq!(fs::read_to_string(file).expect("pasted"), answer.out);
    }
    vulcanized("--dry-run").exits(2);
}
