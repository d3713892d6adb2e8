//! Files generated from the declaration of the command line: completions, the man page, the reference.

use std::fmt::Write as _;
use std::io::{self, Write};

use clap_mangen::roff::{Roff, bold, roman};

use super::{Cli, Generate, env, help};
use crate::{exit, report};

/// Variables that no option declares, and what they are for.
pub(super) const OTHER_VARIABLES: [(&str, &str); 11] = [
    ("VULCANIZED_PASSWORD", "password of `--user`"),
    (
        "KUBECONFIG",
        "kubeconfigs, separated by `:`, without `--kubeconfig`",
    ),
    ("ETCDCTL_ENDPOINTS", "endpoints, without `--etcd`"),
    (
        "ETCDCTL_CACERT, ETCDCTL_CERT, ETCDCTL_KEY",
        "files, without `--cacert`, `--cert`, `--key`",
    ),
    ("ETCDCTL_USER", "user or `name:password`, without `--user`"),
    ("ETCDCTL_PASSWORD", "password, where nothing else gives one"),
    (
        "ETCDCTL_DIAL_TIMEOUT",
        "how long connecting to an endpoint may take, within `--request-timeout`",
    ),
    (
        "ETCDCTL_ENDPOINT, ETCDCTL_PEERS, ETCDCTL_CA_FILE, ETCDCTL_CERT_FILE, ETCDCTL_KEY_FILE, ETCDCTL_USERNAME",
        "with `--etcd-api 2`: the names that etcdctl has for that version",
    ),
    (
        "HTTPS_PROXY, HTTP_PROXY, NO_PROXY",
        "proxies for the Kubernetes API, where the kubeconfig names none",
    ),
    ("NO_COLOR", "no colour, if it is not empty"),
    ("RUST_LOG", "what is logged, in place of `-v`"),
];

const JSON: &str = "\
`-o json` prints one document: the plan in a dry run, what was done otherwise. Fields are added, never changed or
removed; `version` is 1.

| field | content |
|---|---|
| `version`, `program`, `owner`, `scope`, `prefix` | of this run |
| `revision` | of the store when it was listed, or null |
| `dry_run` | whether nothing was written |
| `plan` | a hash over `changes`: what `--expect` takes |
| `counts` | numbers by name |
| `changes` | `action` (`create`, `update`, `delete`), `backend`, `server` (null for a definition), `key`, `pod`, \
`before`, `after`, `proof`, `others` (further keys of the server: `action`, `key`, `before`, `after`) |
| `held` | as in `changes`, and `rule` |
| `allow_deletes` | the number that releases what is held, or null |
| `kept`, `over_budget` | `backend`, `key`, `pod` |
| `emptied` | `backend`, `pods` (`pod`, `reason`) |
| `conflicts` | `backend`, `key`, `pod`, `wanted`, `value`, `owner` |
| `duplicates` | `key`, `winner`, `loser`, `url` |
| `out_of_scope` | `key`, `scope`, `pod` |
| `not_shared`, `not_defined` | `backend`, `left_out`, `ours` |
| `findings` | `text`, `keys`, `command` (null, or lines to paste) |
| `skipped` | `pod`, `reason` |

A run that failed prints `version`, `program`, `owner`, `error` (a text) and `exit` (its code) instead.

`status -o json` prints `version`, `prefix`, `revision`, `backends` (`backend`, `definition`: `valid`, `absent`, `refused`
or `other type`, `refusal`, `servers`: `server`, `key`, `url`, `owner`, `scope`, `namespace`, `pod`, `value`), `owners`
(servers by owner) and `unmarked`. `explain -o json` prints `version`, `pod`, `published` and `steps` (`step`, `text`).
";

/// Writes the completions, the man page or the reference to `out`.
///
/// # Errors
/// Those of `out`.
pub(super) fn generate(what: Generate, out: &mut dyn Write) -> io::Result<()> {
    use clap_complete::Shell;
    let mut command = env::command();
    let shell = match what {
        Generate::Bash => Shell::Bash,
        Generate::Zsh => Shell::Zsh,
        Generate::Fish => Shell::Fish,
        Generate::Man => return out.write_all(&man(command)?),
        Generate::Reference => return out.write_all(reference(command).as_bytes()),
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "vulcanized", &mut text);
    out.write_all(&text)
}

/// Files that are read without an option, and when.
const FILES: [(&str, &str); 3] = [
    (
        "~/.kube/config",
        "kubeconfig, without `--kubeconfig` and `KUBECONFIG`, outside a cluster",
    ),
    (
        "/var/run/secrets/kubernetes.io/serviceaccount/",
        "token, CA and namespace of the service account, in a cluster",
    ),
    (
        "/etc/ssl/certs/",
        "CA certificates to trust, where no CA is given",
    ),
];

const SEE_ALSO: &str = "etcdctl(1), kubectl(1), crontab(5), systemd.timer(5)";

/// The man page: clap's sections, then those that clap does not make.
fn man(command: clap::Command) -> io::Result<Vec<u8>> {
    let variables = variables(&command);
    let man = clap_mangen::Man::new(command);
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let mut roff = Roff::new();
    let mut list = |heading: &str, items: &[(&str, &str)]| {
        roff.control("SH", [heading]);
        for (term, meaning) in items {
            roff.control("TP", []);
            roff.text([bold(*term)]);
            roff.text([roman(*meaning)]);
        }
    };
    let variables = variables
        .iter()
        .map(|(name, of)| (name.as_str(), of.as_str()));
    let variables = variables.chain(OTHER_VARIABLES);
    list("ENVIRONMENT", &variables.collect::<Vec<_>>());
    list("EXIT STATUS", &exit::MEANINGS);
    list("FILES", &FILES);
    roff.control("SH", ["EXAMPLES"]);
    for (example, purpose) in help::EXAMPLES {
        roff.control("PP", []);
        roff.text([roman(format!("{purpose}:"))]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        roff.text([roman(example)]);
        roff.control("fi", []);
        roff.control("RE", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(SEE_ALSO)]);
    roff.to_writer(&mut text)?;
    man.render_version_section(&mut text)?;
    Ok(text)
}

/// The variables of options, each with its option.
fn variables(command: &clap::Command) -> Vec<(String, String)> {
    let arguments = command.get_arguments();
    let variable = |arg: &clap::Arg| {
        let (variable, long) = (arg.get_env()?, arg.get_long()?);
        Some((variable.to_str()?.to_owned(), format!("`--{long}`")))
    };
    arguments.filter_map(variable).collect()
}

/// The text of `docs/reference.md`.
fn reference(mut command: clap::Command) -> String {
    let help = command.render_long_help();
    let mut text = format!(
        "# Reference\n\nMade by `vulcanized --generate reference`; the tests compare it with the program.\n\n\
         ## Options\n\n```text\n{help}```\n\n## Environment\n\n\
         A flag given on the command line wins. An empty variable is absent; `0`, `false`, `no` and `off` switch a \
         flag off.\n\n| variable | |\n|---|---|\n"
    );
    // Writing to a string cannot fail, here and below.
    for (variable, option) in variables(&command) {
        let _ = writeln!(text, "| `{variable}` | {option} |");
    }
    for (names, purpose) in OTHER_VARIABLES {
        let names = names.replace(", ", "`, `");
        let _ = writeln!(text, "| `{names}` | {purpose} |");
    }
    let _ = write!(
        text,
        "\n## Metrics\n\nOf each run that is no dry run, with the label `owner`. All series exist from the first run \
         on; what a failed run does not know keeps its value.\n\n{}\n## JSON report\n\n{JSON}",
        report::metrics::table()
    );
    text
}

impl Cli {
    /// Prints what `--generate` asks for. `false` without that option.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn generate(&self, out: &mut dyn Write) -> io::Result<bool> {
        match self.generate {
            None => Ok(false),
            Some(what) => generate(what, out).map(|()| true),
        }
    }
}
