//! The environment variables of the options: `VULCANIZED_` and the option's long name.

use std::ffi::{OsStr, OsString};

use clap::{ArgAction, Command, CommandFactory as _, FromArgMatches as _};

use super::{Cli, help};

const PREFIX: &str = "VULCANIZED_";

/// Options without a variable: each is meant for one run, not for a manifest.
const COMMAND_LINE_ONLY: [&str; 4] = ["adopt", "allow-deletes", "expect", "generate"];

/// Variables without an option: a password must not be on a command line.
const NO_OPTION: [&str; 1] = ["VULCANIZED_PASSWORD"];

/// The command line with the environment variables of its options. A variable that is empty, or that
/// switches a flag off, counts as absent.
pub(super) fn command() -> Command {
    help::long(Cli::command()).mut_args(|arg| {
        // `status` and `explain` take the same options.
        let is_global = arg.get_long().is_some_and(|long| long != "generate");
        let arg = arg.global(is_global);
        let Some(name) = arg.get_long().and_then(variable) else {
            return arg;
        };
        let is_flag = matches!(arg.get_action(), ArgAction::SetTrue);
        match std::env::var_os(&name) {
            Some(value) if is_absent(&name, &value, is_flag) => arg,
            _ => arg.env(name).hide_env_values(true),
        }
    })
}

/// Parses the command line.
///
/// # Errors
/// A usage error, or the help that was asked for.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let arguments = arguments.collect::<Vec<_>>();
    let has = |names: &[&str]| {
        arguments
            .iter()
            .any(|given| names.iter().any(|name| given == name))
    };
    let mut command = command();
    if has(&["-h"]) {
        command = help::brief(command);
    }
    if has(&["-vV", "-Vv"]) || has(&["-V", "--version"]) && has(&["-v", "--verbose"]) {
        command = command.version(help::VERSION);
    }
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn variable(long: &str) -> Option<String> {
    let has_one = !matches!(long, "help" | "version") && !COMMAND_LINE_ONLY.contains(&long);
    has_one.then(|| variable_name(long))
}

fn variable_name(long: &str) -> String {
    format!("{PREFIX}{}", long.to_ascii_uppercase().replace('-', "_"))
}

fn is_absent(name: &str, value: &OsStr, is_flag: bool) -> bool {
    let text = value.to_string_lossy();
    let text = text.trim();
    let is_off = || ["0", "false", "no", "off"].contains(&&*text.to_ascii_lowercase());
    text.is_empty() || is_flag && is_off() || is_service_variable(name, text)
}

/// Whether Kubernetes sets this variable for a Service whose name begins with `vulcanized`. One of them is
/// `VULCANIZED_PORT`, with a value such as `tcp://10.96.0.7:80`.
fn is_service_variable(name: &str, value: &str) -> bool {
    let is_port = |rest: &str| {
        let mut parts = rest.split('_');
        let number = parts.next().unwrap_or_default();
        !number.is_empty()
            && number.bytes().all(|c| c.is_ascii_digit())
            && matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT") && value.contains("://")
        || name
            .rsplit_once("_PORT_")
            .is_some_and(|(_, rest)| is_port(rest))
        // VULCANIZED_PORT_80_TCP_PORT, _ADDR and _PROTO.
        || name.split("_PORT_").skip(1).any(is_port)
}

/// A warning for each `VULCANIZED_*` variable that nothing reads, with the most similar name.
#[must_use]
pub fn unread_variables(environment: impl Iterator<Item = (OsString, OsString)>) -> Vec<String> {
    let options = Cli::command();
    let options = options.get_arguments().filter_map(clap::Arg::get_long);
    let options = options.collect::<Vec<_>>();
    let known = options.iter().filter_map(|long| variable(long));
    let known = known.chain(NO_OPTION.map(str::to_owned));
    let known = known.collect::<Vec<_>>();
    let warning = |(name, value): (OsString, OsString)| {
        let name = name.into_string().ok()?;
        if !name.starts_with(PREFIX)
            || known.contains(&name)
            || is_service_variable(&name, &value.to_string_lossy())
        {
            return None;
        }
        let only = COMMAND_LINE_ONLY
            .iter()
            .find(|long| variable_name(long) == name);
        if let Some(long) = only {
            return Some(format!(
                "environment variable `{name}` is not read: `--{long}` is for one run, on the command \
                 line only"
            ));
        }
        let likeliest = known
            .iter()
            .map(|known| {
                let (ours, theirs) = (&known[PREFIX.len()..], &name[PREFIX.len()..]);
                (strsim::jaro_winkler(ours, theirs), known)
            })
            .max_by(|(a, _), (b, _)| a.total_cmp(b));
        let meant = match likeliest {
            Some((likeness, known)) if likeness > 0.8 => format!("; did you mean `{known}`?"),
            _ => String::new(),
        };
        Some(format!("environment variable `{name}` is not read{meant}"))
    };
    let mut warnings = environment.filter_map(warning).collect::<Vec<_>>();
    warnings.sort_unstable();
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_nothing_reads() {
        let warnings = |names: &[(&str, &str)]| {
            let names = names
                .iter()
                .map(|(name, value)| (name.into(), value.into()));
            unread_variables(names)
        };
        assert_eq!(
            warnings(&[
                ("VULCANIZED_OWNER", "prod"),
                ("VULCANIZED_PASSWORD", "x"),
                ("VULCANIZED_SERVICE_HOST", "10.96.0.7"),
                ("VULCANIZED_SERVICE_PORT", "80"),
                ("VULCANIZED_SERVICE_PORT_HTTP", "80"),
                ("VULCANIZED_PORT", "tcp://10.96.0.7:80"),
                ("VULCANIZED_PORT_80_TCP", "tcp://10.96.0.7:80"),
                ("VULCANIZED_PORT_80_TCP_ADDR", "10.96.0.7"),
                ("VULCANIZED_METRICS_PORT", "tcp://10.96.0.8:80"),
                ("HOME", "/"),
            ]),
            [""; 0]
        );
        assert_eq!(
            warnings(&[
                ("VULCANIZED_NAMESPACES", "shop"),
                ("VULCANIZED_DRYRUN", "1"),
                ("VULCANIZED_ALLOW_DELETES", "9"),
                ("VULCANIZED_QQ", "1"),
            ]),
            [
                "environment variable `VULCANIZED_ALLOW_DELETES` is not read: `--allow-deletes` is for \
                 one run, on the command line only",
                "environment variable `VULCANIZED_DRYRUN` is not read; did you mean \
                 `VULCANIZED_DRY_RUN`?",
                "environment variable `VULCANIZED_NAMESPACES` is not read; did you mean \
                 `VULCANIZED_NAMESPACE`?",
                "environment variable `VULCANIZED_QQ` is not read",
            ]
        );
    }
}
