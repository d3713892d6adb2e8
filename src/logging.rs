//! The log on stderr, as text or as JSON lines.

use std::io::Write as _;
use std::time::SystemTime;

use log::{Level, LevelFilter};
use serde_json::json;

use crate::config::{LogFormat, Output};
use crate::text::{escaped, escaped_json, redacted};

/// Starts logging: warnings, or more with `-v`, or what `RUST_LOG` says.
pub fn start(output: Output, rust_log: Option<&str>) {
    let ours = match (output.quiet, output.verbose) {
        (true, _) => LevelFilter::Error,
        (false, 0) => LevelFilter::Warn,
        (false, 1) => LevelFilter::Info,
        (false, 2) => LevelFilter::Debug,
        (false, _) => LevelFilter::Trace,
    };
    let mut builder = env_logger::Builder::new();
    // Libraries log more only if `RUST_LOG` says so.
    builder
        .filter_level(LevelFilter::Warn)
        .filter_module(env!("CARGO_CRATE_NAME"), ours);
    if let Some(directives) = rust_log {
        builder.parse_filters(directives);
    }
    let format = output.log_format;
    builder.format(move |out, record| {
        // At this level libraries log the bytes that they send, passwords and tokens included.
        let ours = record.target().starts_with(env!("CARGO_CRATE_NAME"));
        if record.level() == Level::Trace && !ours {
            return Ok(());
        }
        let time = SystemTime::now();
        let line = line(
            format,
            time,
            record.level(),
            record.target(),
            &record.args().to_string(),
        );
        writeln!(out, "{line}")
    });
    builder.init();
}

/// One line of the log, without its end: passwords are redacted, control characters escaped.
#[must_use]
pub fn line(
    format: LogFormat,
    time: SystemTime,
    level: Level,
    module: &str,
    message: &str,
) -> String {
    let message = redacted(message);
    let level = level.as_str().to_ascii_lowercase();
    match format {
        LogFormat::Text => format!("{level}: {}", escaped(&message)),
        LogFormat::Json => {
            let line = json!({
                "time": humantime::format_rfc3339_millis(time).to_string(),
                "level": level,
                "message": message,
                "fields": { "module": module },
            });
            escaped_json(&line.to_string()).into_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_log_lines_are_escaped() {
        let line = |format| {
            let message = "a\u{1b}\u{9b}1m\nb http://u:p@h";
            line(format, SystemTime::UNIX_EPOCH, Level::Warn, "m", message)
        };
        assert_eq!(
            line(LogFormat::Text),
            "warn: a\\u{1b}\\u{9b}1m\\nb http://***@h"
        );
        let json = line(LogFormat::Json);
        assert!(!json.contains(char::is_control), "{json}");
        let json = serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
        assert_eq!(json["message"], "a\u{1b}\u{9b}1m\nb http://***@h");
    }
}
