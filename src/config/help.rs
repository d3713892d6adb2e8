//! What `-h`, `--help`, `--version` and the man page show beside the options: examples, exit codes, the
//! build.

use std::fmt::Write as _;

use clap::Command;

use crate::exit;

/// The options that `-h` shows: what fits on one screen.
const BRIEF: [&str; 21] = [
    "owner",
    "help",
    "version",
    "context",
    "namespace",
    "all-namespaces",
    "selector",
    "pods",
    "backend",
    "port",
    "etcd",
    "layout",
    "store-file",
    "dry-run",
    "adopt",
    "create-backends",
    "allow-empty",
    "allow-deletes",
    "output",
    "verbose",
    "quiet",
];

/// Example commands, each with its purpose.
pub(super) const EXAMPLES: [(&str, &str); 3] = [
    (
        "vulcanized --owner prod --etcd http://127.0.0.1:2379 --dry-run",
        "What would change, for the pods of the kubeconfig's context and namespace",
    ),
    (
        "vulcanized --owner prod --etcd http://127.0.0.1:2379 -A --backend '{namespace}.{name}.svc'",
        "The pods of all namespaces, with backends such as `shop.web.svc`",
    ),
    (
        "kubectl get pods -o json | vulcanized --owner prod --pods - --store-file store.json --dry-run",
        "Without a cluster and without etcd",
    ),
];

fn examples(with_purpose: bool) -> String {
    let mut text = String::from("Examples:\n");
    for (command, purpose) in EXAMPLES {
        // Writing to a string cannot fail, here and below.
        let _ = if with_purpose {
            writeln!(text, "  {purpose}:\n    {command}")
        } else {
            writeln!(text, "  {command}")
        };
    }
    text
}

/// The command for `--help`, with examples and exit codes after its options.
pub(super) fn long(command: Command) -> Command {
    let mut text = examples(true);
    let _ = writeln!(text, "\nExit codes ({}):", exit::ORDER);
    for (code, meaning) in exit::MEANINGS {
        let options = textwrap::Options::new(100).subsequent_indent("     ");
        let line = format!("  {code}  {meaning}");
        let _ = writeln!(text, "{}", textwrap::fill(&line, options));
    }
    command.after_long_help(text)
}

/// The command for `-h`: the options that most people need, one line each.
pub(super) fn brief(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let is_shown = arg.get_long().is_some_and(|long| BRIEF.contains(&long));
        let takes_values = arg.get_action().takes_values();
        arg.help_heading(None)
            .hide_short_help(!is_shown)
            .hide_env(true)
            .hide_default_value(takes_values)
            .hide_possible_values(takes_values)
    });
    command.after_help(format!(
        "{}\nAll options, their environment variables and the exit codes: --help",
        examples(false)
    ))
}

/// What `--version -v` prints.
pub(super) const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("BUILD_COMMIT"),
    "\nbuild: ",
    env!("BUILD_PROFILE"),
    ", ",
    env!("BUILD_TARGET"),
    ", ",
    env!("BUILD_RUSTC"),
);
