//! Text for people and shells: escaping, redacting, quoting. Used by all, uses nothing.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde::Serializer;

/// Puts `text` into single quotes for `sh`.
#[must_use]
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Escapes what could control a terminal or deceive a reader: control characters, line ends included, and
/// characters that change the direction of text.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_but(text, &[])
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes in a JSON document what [`escaped`] escapes and JSON writes as it is. Such characters occur in
/// strings only, except for the line ends between the document's parts.
#[must_use]
pub(crate) fn escaped_json(json: &str) -> Cow<'_, str> {
    let steers = |c: char| c != '\n' && steers(c);
    if !json.contains(steers) {
        return Cow::Borrowed(json);
    }
    let escape = |c: char| {
        if steers(c) {
            format!("\\u{:04x}", u32::from(c))
        } else {
            c.to_string()
        }
    };
    json.chars().map(escape).collect::<String>().into()
}

/// The same JSON in one line, with escapes for what JSON itself lets through and a terminal obeys: for commands to
/// paste.
#[must_use]
pub(crate) fn json_line(json: &str) -> String {
    // JSON has these between its parts alone: within a string they are escaped.
    let json = json.replace(['\t', '\n', '\r'], " ");
    escaped_json(&json).into_owned()
}

fn escaped_but<'t>(text: &'t str, spared: &[char]) -> Cow<'t, str> {
    let steers = |c: char| steers(c) && !spared.contains(&c);
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let escape = |c: char| {
        if steers(c) {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect::<String>().into()
}

/// A value for people: bytes that are not UTF-8 become U+FFFD, control characters are escaped, line ends
/// kept, and the password of a URL is left out.
#[must_use]
pub(crate) fn shown(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    redacted(&escaped_but(&text, &['\n', '\t'])).into_owned()
}

/// The same, for `#[serde(serialize_with)]`.
pub(crate) fn serialize_shown<S: Serializer>(value: &[u8], to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&shown(value))
}

/// Leaves `user:password@` out of each URL in `text`, in time linear in its length.
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    // The end of what is copied to `out`; the end of the word at hand, and its last `@`.
    let (mut copied, mut word_end, mut last_at) = (0, 0, None);
    let mut from = 0;
    while let Some(found) = text[from..].find("://") {
        let start = from + found + 3;
        if start > word_end {
            // One word may hold many URLs: it is searched once, not once per URL.
            let rest = &text[start..];
            let end = rest.find(|c: char| c.is_whitespace() || c == '"');
            word_end = start + end.unwrap_or(rest.len());
            last_at = text[start..word_end].rfind('@').map(|at| start + at);
        }
        let word = &text[start..word_end];
        let authority = &word[..word.find(['/', '?', '#']).unwrap_or(word.len())];
        // Digits are a port. Anything else is a password whose `/` should have been written `%2F`.
        let is_port = |port: &str| port.bytes().all(|c| c.is_ascii_digit());
        let at = match authority.rsplit_once(':') {
            Some((host, port))
                if !is_port(port) && !host.starts_with('[') && !host.contains('@') =>
            {
                last_at.filter(|at| *at >= start)
            }
            _ => authority.rfind('@').map(|at| start + at),
        };
        from = start;
        if let Some(at) = at {
            out.push_str(&text[copied..start]);
            out.push_str("***");
            (copied, from) = (at, at);
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    out.into()
}

/// The first `most` characters of a text, and an ellipsis where there are more.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Decodes a file's bytes: UTF-8, or UTF-16 with a byte order mark, which is left out. `None` for
/// anything else.
#[must_use]
pub(crate) fn decoded(bytes: &[u8]) -> Option<String> {
    let utf16 = |rest: &[u8], unit: fn([u8; 2]) -> u16| {
        let (units, []) = rest.as_chunks::<2>() else {
            return None;
        };
        let units = units.iter().map(|pair| unit(*pair));
        String::from_utf16(&units.collect::<Vec<_>>()).ok()
    };
    match bytes {
        [0xEF, 0xBB, 0xBF, rest @ ..] => String::from_utf8(rest.to_vec()).ok(),
        [0xFF, 0xFE, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xFE, 0xFF, rest @ ..] => utf16(rest, u16::from_be_bytes),
        _ => String::from_utf8(bytes.to_vec()).ok(),
    }
}

/// The first 8 hex digits of the SHA-256 of these bytes.
#[must_use]
pub(crate) fn fingerprint(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let first = digest.as_ref().iter().take(4);
    first.fold(String::with_capacity(8), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_marks_say_how_a_file_is_encoded() {
        let units = |unit: fn(u16) -> [u8; 2]| "\u{feff}a: é".encode_utf16().flat_map(unit);
        for bytes in [
            "a: é".as_bytes().to_vec(),
            "\u{feff}a: é".as_bytes().to_vec(),
            units(u16::to_le_bytes).collect(),
            units(u16::to_be_bytes).collect(),
        ] {
            assert_eq!(decoded(&bytes).as_deref(), Some("a: é"), "{bytes:?}");
        }
        assert_eq!(decoded(&[0xFF, 0xFE, 0x61]), None);
        assert_eq!(decoded(&[0x61, 0xFF]), None);
    }

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(escaped("web-1 é"), "web-1 é");
        assert_eq!(
            escaped("a\u{1b}[31m\r\nb\u{202e}"),
            "a\\u{1b}[31m\\r\\nb\\u{202e}"
        );
        assert_eq!(escaped("a\u{61c}\u{9b}"), "a\\u{61c}\\u{9b}");
        assert_eq!(shown(b"{\n\"a\":\x1b}\xff"), "{\n\"a\":\\u{1b}}\u{fffd}");
    }

    #[test]
    fn control_characters_in_json_log_lines_are_escaped() {
        let text = "é\u{1b}\u{7f}\u{9b}\u{61c}\u{202e}\n\t\"";
        let json = serde_json::to_string_pretty(&[text]).expect("a string is JSON");
        let escaped = escaped_json(&json);
        let read = serde_json::from_str::<Vec<String>>(&escaped).expect("JSON stays JSON");
        assert_eq!(read, [text]);
        assert!(
            !escaped.contains(|c: char| c != '\n' && steers(c)),
            "{escaped}"
        );
        assert!(escaped.contains('é'));
    }

    #[test]
    fn passwords_in_urls_are_left_out() {
        assert_eq!(redacted("http://10.0.0.1:80/a@b"), "http://10.0.0.1:80/a@b");
        assert_eq!(
            redacted(r#"{"URL":"http://u:p@h:1"} s://x"#),
            r#"{"URL":"http://***@h:1"} s://x"#
        );
        assert_eq!(
            redacted("http://u:p@q@h http://v@h"),
            "http://***@h http://***@h"
        );
        assert_eq!(
            redacted(r"http://u:p,q'r\s@h,http://i"),
            "http://***@h,http://i"
        );
        assert_eq!(redacted("http://h\nu@h"), "http://h\nu@h");
        assert_eq!(
            redacted("at http://u:p/q?r#s@h:1/a x@y"),
            "at http://***@h:1/a x@y"
        );
        for plain in [
            "http://[fd00::1]/a@b",
            "http://h:1/a@b",
            "http://a:1,http://b:2/c@d",
        ] {
            assert_eq!(redacted(plain), plain);
        }
        assert_eq!(
            redacted("http://u:p@[fd00::1]/a@b"),
            "http://***@[fd00::1]/a@b"
        );
    }
}
